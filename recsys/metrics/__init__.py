"""Measures on rankings and on predictions, and their bootstrap intervals; NumPy in, NumPy out."""

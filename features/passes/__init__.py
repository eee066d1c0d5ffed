"""Passes over columns that every event goes through: each in NumPy, and as a kernel where those are compiled."""

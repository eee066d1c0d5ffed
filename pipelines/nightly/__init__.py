"""Nights: a run for one day, once, from where the last one stands; missed days are caught up in order."""

"""Signals that are computed from measurements of the kept events, after the split."""

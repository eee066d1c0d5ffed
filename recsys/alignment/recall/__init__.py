"""Means against the alignment tax: what keeps recall at depth while the first place is trained. Pure maths."""

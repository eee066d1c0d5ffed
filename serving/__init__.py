"""Bundles, scoring, registry, batch candidates: what answers after training is over."""

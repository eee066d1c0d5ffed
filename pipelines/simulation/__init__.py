"""A simulated A/B test against the simulator's known utilities."""

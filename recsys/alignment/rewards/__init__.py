"""Rewards of generated candidates, each for itself and put together for a run."""

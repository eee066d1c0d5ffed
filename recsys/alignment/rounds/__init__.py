"""The loop of rounds: train, measure, hold against the guard, keep or go back."""

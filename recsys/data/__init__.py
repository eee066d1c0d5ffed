"""Histories on their way to the model: ragged arrays, batches, samples, the Lightning data module."""

"""Losses of preference alignment and reinforcement learning: tensors in, tensors out."""

"""Alignment: reward model, rewards, roll-outs, preference pairs, iterative preference alignment, ranking-reward RL."""

"""A causal language model as the policy: it reads histories and writes semantic IDs as tokens of its own."""

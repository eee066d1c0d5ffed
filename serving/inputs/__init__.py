"""What a caller hands in: histories, rule lists, objective weights, checked once."""

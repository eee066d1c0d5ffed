"""From next-code distributions to items: prefix index, constraints, exact constrained beam search, recommender."""

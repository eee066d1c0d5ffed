"""Counted statistics that give every item of the catalogue a score for a history: second opinions beside the policy."""

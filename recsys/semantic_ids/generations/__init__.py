"""Generations of semantic IDs: how one grows night by night, when it is used up, and how the next is named after it."""

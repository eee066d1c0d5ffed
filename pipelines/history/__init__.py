"""What an output folder holds and held: what was made from what, and what is needed no more."""

"""How far a request moves what a policy answers."""

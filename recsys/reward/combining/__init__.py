"""How the towers of a reward model become one number: weights, and what is done to a tower before it is weighed."""

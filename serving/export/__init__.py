"""Write a bundle, and prove that it answers like the model it was made of."""

"""What the policy generates for a request, and how likely it was."""

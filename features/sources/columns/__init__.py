"""Reading raw columns: each canonical column from a raw one, with a reason for every value that cannot be understood."""

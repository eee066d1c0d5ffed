"""The page of the data report."""

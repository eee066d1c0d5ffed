"""Public data sets in the layout of their publishers: which files there are, what their columns are called and mean."""

"""Public data sets: where they are, how they are fetched, and how a prepared one is handed to another library."""

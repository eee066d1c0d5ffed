"""From a saved log to the prepared data set, some users at a time."""

"""The self-contained folder that serves: what is in it and how it is read."""

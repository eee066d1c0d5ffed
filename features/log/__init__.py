"""The event log: raw batches become compact arrays, sorted; bad rows are set apart, repeats merged, thin users removed."""

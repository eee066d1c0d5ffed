"""What may be recommended to whom: rules as given, compiled for a catalogue, of one batch, and why a list is short."""

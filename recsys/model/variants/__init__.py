"""Other encoders and decoders behind the same interface: pathways, lifelong history, lazy decoder."""

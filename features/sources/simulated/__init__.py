"""The embedded simulator: items, users and what they do, feeds, the world, and its log as a source."""

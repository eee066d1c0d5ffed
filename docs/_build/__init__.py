"""Generators of the documentation site: everything that must not be written twice is read from the code at build time."""

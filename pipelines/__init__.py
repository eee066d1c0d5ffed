"""Wires everything: configuration, stages, runs, tracking, promotion, the command line."""

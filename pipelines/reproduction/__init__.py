"""Reproduction packs: a published protocol as one command, with the published rows beside ours."""

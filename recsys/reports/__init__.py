"""Pages for people: HTML that loads nothing, with its figures inside."""

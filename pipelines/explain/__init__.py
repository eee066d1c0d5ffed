"""Why a user was given these items: everything on the way from the history to the list."""

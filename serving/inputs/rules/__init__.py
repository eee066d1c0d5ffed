"""Business rules: which items a request may show to whom, from files, from dislikes, and from the request itself."""

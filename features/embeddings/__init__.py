"""Item embeddings: one module per source (text, collaborative, attributes) and their fusion."""

"""The learned second stage: candidates with features in, an order out; fitted and guarded on validation rows."""

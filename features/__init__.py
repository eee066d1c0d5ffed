"""Raw logs in, a prepared data set out (:mod:`recsys.contracts.prepared`), and embeddings of its items."""

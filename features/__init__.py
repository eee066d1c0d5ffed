"""Raw logs in, a prepared data set out (:mod:`recsys.contracts.dataset`), and embeddings of its items."""

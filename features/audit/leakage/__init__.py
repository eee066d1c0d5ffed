"""The leakage audit: what of the later events a model, or a metric, could look at, found and priced."""

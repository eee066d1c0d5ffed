"""Settings of baselines chosen on validation rows, and the fusion of the best two."""

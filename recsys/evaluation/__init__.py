"""Item-level evaluation over the full catalogue: metrics, intervals, slices, baselines, report."""

"""What a run tells its scheduler: a JSON summary per run, and a file of metrics for monitoring."""

"""The machine under the stages: plan, digest, run, lock. Knows no stage's meaning."""

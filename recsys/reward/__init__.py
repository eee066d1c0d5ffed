"""The session reward model: labels from feedback, target-aware towers, calibration, scorers."""

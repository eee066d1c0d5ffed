"""What users did with sessions, as labelled data of a reward model."""

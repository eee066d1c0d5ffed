"""Baselines, from counting to SASRec; printed beside every model."""

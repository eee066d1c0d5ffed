"""The generative recommender itself: contracts, semantic IDs, model, decoding, training, evaluation.

Nothing here knows pipelines, feature building or serving, and nothing here imports MLflow.
"""

__version__ = "0.1.0"

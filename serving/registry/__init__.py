"""The MLflow registry and the model class that it loads."""

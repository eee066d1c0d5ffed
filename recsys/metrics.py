from recsys.evaluation.metrics import row_metrics  # noqa

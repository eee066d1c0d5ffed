"""One mapping between the metric names people read (``ndcg@10``) and those that trackers accept (``ndcg_at_10``)."""


def tracked_name(metric: str) -> str:
    """Return the name for Lightning and MLflow, which refuse or rewrite ``@``.

    Example:
        >>> tracked_name("ndcg@10")
        'ndcg_at_10'
    """
    return metric.replace("@", "_at_")


def display_name(metric: str) -> str:
    """Undo :func:`tracked_name`.

    Example:
        >>> display_name("ndcg_at_10")
        'ndcg@10'
    """
    return metric.replace("_at_", "@")

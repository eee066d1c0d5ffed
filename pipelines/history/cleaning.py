"""What `recsys clean` and a night that cleans after itself (``nights.clean``) do, from a configuration alone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipelines.history.inventory import Inventory, read_inventory
from pipelines.history.retention import Sweep, plan_sweep, sweep
from recsys.contracts.errors import RecsysError

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from serving.registry.model_registry import Registry

logger = logging.getLogger("recsys.pipelines")


def registry_of(config: RunConfig, *, writes: bool = False) -> Registry:
    """The registry that is there; none is made to look at it."""
    from serving.registry.mlflow_client import tracking_uri
    from serving.registry.model_registry import Registry

    uri = tracking_uri(config.tracking.uri, config.output_dir)
    return Registry(uri, config.output_dir / "registry", config.tracking.timeout_s, create=writes)


def inventory_of(config: RunConfig) -> Inventory:
    """What there is in the output folder and in its registry."""
    return read_inventory(config.output_dir, config.registered_name, lambda: registry_of(config))


def plan_cleaning(config: RunConfig, keep: int) -> Sweep:
    """Say what :func:`clean` would delete."""
    return plan_sweep(config.output_dir, inventory_of(config), keep)


def clean(config: RunConfig, keep: int) -> Sweep:
    """Delete what is needed no more; the caller holds the folder's lock.

    Args:
        keep: Newest results and versions that stay.
    """
    planned = plan_cleaning(config, keep)
    sweep(config.output_dir, planned, lambda: registry_of(config, writes=True))
    return planned


def clean_after_night(config: RunConfig) -> None:
    """Delete what old nights have left; a night that is done is not undone by what cannot be deleted."""
    try:
        planned = clean(config, config.nights.keep_nights)
    except RecsysError as error:
        logger.warning("nights.clean: nothing more is deleted tonight: %s", error)
        return
    for line in planned.to_text(done=True).splitlines():
        logger.info("nights.clean: %s", line)

"""What can be set about the bundle and about the batch job; light to import, so that the command line starts fast."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from recsys.config import FrozenConfig


class ExportConfig(FrozenConfig):
    """How the trained policy leaves the pipeline.

    Attributes:
        registered_name: Name in the MLflow registry; ``None`` takes the name of the run.
        parity_users: Users whose recommendations from the bundle are compared with those of the trained policy; a
            difference refuses the export.
    """

    registered_name: str | None = None
    parity_users: int = Field(default=64, ge=1)


class RecommendConfig(FrozenConfig):
    """The batch job that writes candidates for all users.

    Attributes:
        model: ``models:/name@alias``, ``models:/name/version`` or a bundle folder; ``None`` takes the champion of the
            run's registered model.
        k: Rows per user; fewer only where constraints leave fewer legal items.
        exclude_seen: Leave out what the user's history holds.
        rescore: Order the beam's items by the dense head; ``None`` does what the bundle's decode configuration says.
        users_per_shard: Users in one output file, which is also the unit of restart and the bound on memory.
        allow: File with the only items that may be recommended, Parquet or CSV with a column ``item_id``, or plain text
            with one id per line; ``None`` allows the catalogue.
        deny: File with items that must not be recommended, same forms.
    """

    model: str | None = None
    k: int = Field(default=20, ge=1, le=1000)
    exclude_seen: bool = True
    rescore: bool | None = None
    users_per_shard: int = Field(default=8192, ge=1)
    allow: Path | None = None
    deny: Path | None = None

"""Tonight's prepared data against those that the champion was made from, before anything is trained on them.

Reads ``data_contract.json`` of the prepared data, and of the champion's bundle where the registry answers, else of the last
data that were accepted in this output folder; produces ``<output_dir>/data_contracts/<registered name>.json`` (what was
accepted last) and ``…_changes.json`` (the last comparison). A change that nobody meant ends the run with exit code 3.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.audit.changes import Change, ChangesConfig, compare, refusals
from features.audit.contract import DataContract, parse_contract, read_contract
from recsys.contracts.dataset import CONTRACT_NAME
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import Artifact, ArtifactStore, explain_write_errors, read_json, write_json
from serving.registry.mlflow_client import TrackingUnreachable

if TYPE_CHECKING:
    from serving.registry.model_registry import Registry

logger = logging.getLogger("recsys.pipelines")


@dataclass(frozen=True)
class Earlier:
    """What tonight is compared with.

    Attributes:
        contract: What those data promised.
        name: Who they were, for the message.
        data_digest: Their artefact, empty where it is not known.
    """

    contract: DataContract
    name: str
    data_digest: str = ""


@dataclass(frozen=True)
class NightCheck:
    """Compares the prepared data of one output folder and one registered model.

    Attributes:
        output_dir: Holds what was accepted last.
        registered_name: The model whose champion counts; another name begins anew.
        config: What may differ.
        where: Says which file and line a kind of change comes from, ``None`` where it cannot say.
    """

    output_dir: Path
    registered_name: str
    config: ChangesConfig
    where: Callable[[Change], str | None] = lambda change: None

    @property
    def accepted_file(self) -> Path:
        """The contract of the last accepted data."""
        return self.output_dir / "data_contracts" / f"{self.registered_name}.json"

    @property
    def changes_file(self) -> Path:
        """The last comparison."""
        return self.accepted_file.with_name(f"{self.registered_name}_changes.json")

    def check(self, prepared: Artifact, champion: Earlier | None = None) -> list[Change]:
        """Compare, write down what was found, and remember the data as accepted.

        Args:
            prepared: Tonight's data.
            champion: What the champion was made from; ``None`` takes the last accepted data of the folder.

        Returns:
            The differences, accepted ones included.

        Raises:
            DataError: The data changed in a way that nobody accepted; all changes are named at once.
        """
        now = read_contract(prepared.path / CONTRACT_NAME)
        if now is None:  # prepared by hand or by an older version: nothing is promised, so nothing can be broken
            return []
        before = champion or self._accepted()
        if before is not None and before.data_digest == prepared.digest:
            return []  # these very data; the comparison that they passed is kept
        changes = self._changes(before, now)
        self._write(
            self.changes_file,
            {
                "before": before.name if before else None,
                "before_digest": before.data_digest if before else None,
                "digest": prepared.digest,
                "changes": [{**asdict(change), "accepted": change.kind in self.config.accept} for change in changes],
            },
        )
        self._decide(changes, before)
        self._write(self.accepted_file, {"digest": prepared.digest, "contract": now.model_dump(mode="json")})
        return changes

    def foresee(self, now: DataContract) -> list[Change]:
        """Compare data that nobody has prepared yet with the last accepted ones, as :meth:`check` will; writes nothing.

        Raises:
            DataError: The data changed in a way that nobody accepted; all changes are named at once.
        """
        before = self._accepted()
        changes = self._changes(before, now)
        self._decide(changes, before)
        return changes

    def _changes(self, before: Earlier | None, now: DataContract) -> list[Change]:
        return [] if before is None else compare(before.contract, now, self.config)

    def _decide(self, changes: Sequence[Change], before: Earlier | None) -> None:
        stopping = refusals(changes, self.config)
        for change in changes:
            if change not in stopping:
                logger.warning("data changed%s: %s", " as accepted" if change.stops else "", change.words)
        unused = sorted(set(self.config.accept) - {change.kind for change in changes})
        if unused and before is not None:
            logger.warning("changes.accept lists %s, which did not change: take it out again", ", ".join(unused))
        if stopping:
            raise DataError(self._message(stopping, before))

    def _message(self, stopping: Sequence[Change], before: Earlier | None) -> str:
        lines = []
        for change in stopping:
            place = self.where(change)
            lines.append(f"- {change.kind}: {change.words}{f'; {place}' if place else ''}")
        kinds = ",".join(dict.fromkeys(change.kind for change in stopping))
        name = before.name if before else "the data before"
        return (
            f"the data changed against {name} in {len(stopping)} way{'s' * (len(stopping) > 1)}, and nothing is trained on "
            "them:\n"
            + "\n".join(lines)
            + f"\nmend the source; or, if this is meant, accept it with changes.accept=[{kinds}]"
            ", or train another model under another name (export.registered_name)"
        )

    def _accepted(self) -> Earlier | None:
        if not self.accepted_file.exists():
            return None
        found: dict[str, Any] = read_json(self.accepted_file)
        contract = parse_contract(found.get("contract"), self.accepted_file)
        digest = str(found.get("digest", ""))
        return Earlier(contract, f"the last accepted data of '{self.output_dir}' ({digest[:16]})", digest)

    def _write(self, path: Path, value: Any) -> None:
        with explain_write_errors(self.output_dir):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, value)


def changes_of(output_dir: Path, registered_name: str, digest: str) -> dict[str, Any] | None:
    """Return the last comparison of an output folder if it was about these data, else ``None``."""
    path = NightCheck(output_dir, registered_name, ChangesConfig()).changes_file
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    return found if found.get("digest") == digest else None


def champion_data(registry: Callable[[], Registry], store: ArtifactStore, name: str) -> Earlier | None:
    """Return what the champion's data promised, ``None`` where there is none or the registry does not answer.

    The bundle is read from this folder's artefacts where it lies there, else fetched from the registry.
    """
    from serving.registry.aliases import CHAMPION

    try:
        opened = registry()
        champion = opened.by_alias(name, CHAMPION)
        if champion is None:
            return None
        folder = opened.open_bundle(champion, store).path
    except TrackingUnreachable as error:
        logger.warning("%s; the data are compared with the last accepted ones of this folder", error)
        return None
    contract = read_contract(folder / CONTRACT_NAME)
    if contract is None:
        logger.warning("%s was exported without a data contract; nothing is compared with it", champion.reference)
        return None
    return Earlier(contract, f"those of the champion, {champion.reference}", champion.tags.get("data_digest", ""))

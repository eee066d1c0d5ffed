"""What stands where: aliases, last decisions, what waits, what was interrupted. Reads everything and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.release.gate.aliases import JOURNAL
from pipelines.release.gate.audit import FOLDER, AuditLog
from recsys.contracts.errors import ConfigError, RecsysError
from recsys.paths import bytes_below
from serving.registry.aliases import CHAMPION

if TYPE_CHECKING:
    from serving.registry.model_registry import Registry


def status_of(output_dir: Path, name: str, registry: Callable[[], Registry]) -> dict[str, Any]:
    """Collect the state of one registered model.

    Args:
        output_dir: Of its runs.
        registry: Opens the registry; where that fails the record of this folder has to do, and ``registry_error`` says why.

    Returns:
        ``aliases``, ``versions`` (how many), ``champion``, ``lost_champion`` (who was it when its alias or the version was
        deleted), ``champion_since``, ``last_decision``, ``pending``, ``set_aside``,
        ``interrupted_move``, ``artifact_bytes``, ``folder_bytes`` (artefacts, tracking, registry and all else).

    Raises:
        ArtifactError: The record was changed by hand.
    """
    events = AuditLog(output_dir).events(name)
    found: dict[str, Any] = {"model": name, "output_dir": str(output_dir.absolute())}
    try:
        opened = registry()
        found |= {"aliases": opened.aliases(name), "versions": len(opened.versions(name))}
    except ConfigError as error:  # there is no database: of a folder that has a record it was taken away
        found |= {"aliases": {}, "versions": 0}
        found |= {"versions": None, "registry_error": str(error)} if events else {}
    except RecsysError as error:
        found |= {"aliases": {}, "versions": None, "registry_error": str(error)}
    moves = [event for event in events if event["event"] in ("promoted", "rolled back")]
    champion, last = found["aliases"].get(CHAMPION), moves[-1]["challenger"] if moves else None
    lost = last if champion is None and "registry_error" not in found else None
    champion = champion or (None if lost else last)
    since = [event["at"] for event in moves if event["challenger"] == champion]
    tracking = output_dir / "tracking"
    return found | {
        "champion": champion,
        "lost_champion": lost,
        "champion_since": since[-1] if since else None,
        "last_decision": events[-1] if events else None,
        "pending": sorted(path.name for path in (tracking / "pending").glob("[!.]*.json")),
        "set_aside": sorted(path.name for path in (tracking / "set_aside").glob("*")),
        "interrupted_move": (output_dir / FOLDER / JOURNAL.format(model=name)).exists(),
        "artifact_bytes": bytes_below(output_dir / "artifacts"),
        "folder_bytes": bytes_below(output_dir),
    }


def status_text(status: Mapping[str, Any]) -> str:
    """The same for people."""
    since = f", since {status['champion_since']}" if status["champion_since"] else ""
    champion = f"version {status['champion']}{since}" if status["champion"] else "none"
    if status["lost_champion"]:
        champion = f"none: the alias, or its version, was deleted; it was version {status['lost_champion']}"
    others = ", ".join(f"{alias} {number}" for alias, number in sorted(status["aliases"].items()) if alias != CHAMPION)
    last = status["last_decision"]
    lines = [
        f"model       {status['model']}, {_versions(status['versions'])}",
        f"champion    {champion}",
        f"aliases     {others or 'no others'}",
        f"last        {last['at']} {last['event']}: {last['reason']}"
        if last
        else "last        nothing was decided yet",
        f"pending     {len(status['pending'])} tracking records wait, {len(status['set_aside'])} were set aside",
        f"disk        {status['folder_bytes'] / 1e6:,.1f} MB in {status['output_dir']}, of which artefacts "
        f"{status['artifact_bytes'] / 1e6:,.1f}",
    ]
    if status["interrupted_move"]:
        lines.append(
            "warning     a move of the aliases was interrupted; the next run or rollback finishes or undoes it"
        )
    if "registry_error" in status:
        lines.append(f"warning     {status['registry_error']}")
    return "\n".join(lines)


def _versions(number: int | None) -> str:
    """How many versions there are, in words."""
    if number is None:
        return "unknown versions"
    if not number:
        return "no version is registered yet (`recsys run` registers the first)"
    return f"{number} version{'s' * (number > 1)}"

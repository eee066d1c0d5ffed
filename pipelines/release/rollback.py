"""Going back to an earlier version: the aliases move, the record says so, and the gate does not undo it the next night."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.release.gate.aliases import Afterwards, AliasMover
from pipelines.release.gate.keeper import GATE_AGAINST, GATE_VERDICT, PASSED, REFUSED, ROLLED_BACK
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import ArtifactStore
from serving.registry.aliases import ANCHOR, CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from serving.registry.model_registry import Registry


def roll_back(registry: Registry, name: str, output_dir: Path, to: str | None = None) -> str:
    """Make an earlier version champion, which it need not have been before.

    The version that is left counts as compared with the new champion, so that the next run does not promote it again. A
    call that was interrupted after the champion had moved is finished by the next one, which goes no further back by itself.

    Args:
        name: Registered name.
        output_dir: Holds the record.
        to: Number of a version; ``None`` takes the champion before.

    Returns:
        What was done, one sentence.

    Raises:
        ArtifactError: There is no such version, no champion before, or its bundle is gone, damaged or another's.
    """
    mover = AliasMover(registry, name, output_dir)
    repaired = mover.repair()
    aliases = registry.aliases(name)
    champion, target = aliases.get(CHAMPION), to or aliases.get(PREVIOUS)
    if repaired is not None and repaired.finished == ROLLED_BACK and to in (None, champion):
        return f"version {champion} of '{name}' is champion: a rollback that was interrupted is finished"
    versions = {version.number: version for version in registry.versions(name)}
    if not versions:
        raise ArtifactError(
            f"no version of '{name}' is registered, so that there is none to go back to; see `recsys status`"
        )
    if target is None:
        raise ArtifactError(
            f"no version of '{name}' carries the alias '{PREVIOUS}', so that it is not known where to go back to; name the "
            f"version with --to: there are {', '.join(versions)}"
        )
    if target not in versions:
        raise ArtifactError(f"'{name}' has no version {target}; there are {', '.join(versions)}")
    if target == champion:
        return f"version {target} of '{name}' is champion already"
    registry.open_bundle(versions[target], ArtifactStore(output_dir / "artifacts"))  # what cannot serve is no champion
    verdict = versions[target].tags.get(GATE_VERDICT)
    was_champion = target == aliases.get(PREVIOUS) or verdict in (PASSED, ROLLED_BACK)
    words = f"version {target} of '{name}' is champion{' again' if was_champion else ''}"
    words += f", in place of version {champion}" if champion else ""
    words += ", although the gate refused it" if verdict == REFUSED else ""
    tags = {GATE_AGAINST: target, GATE_VERDICT: ROLLED_BACK, "gate_reason": f"taken back for version {target}"}
    # a version that was taken back is no measure for others
    anchor = champion is None or aliases.get(ANCHOR) in (None, champion)
    mover.move(target, champion, Afterwards(ROLLED_BACK, words, anchor, tags))
    return words

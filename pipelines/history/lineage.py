"""What was made from what: data, semantic IDs, policy, version, candidates, in both directions.

Reads an :class:`~pipelines.history.inventory.Inventory`; produces a :class:`Lineage`, which prints as a tree or as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import polars as pl

from pipelines.history.inventory import BASE_PREFIX, Inventory, known_of
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import MANIFEST_NAME, open_artifact, read_json
from serving.batch.ledger import JOB_FILE
from serving.registry.aliases import BUNDLE_TAG, CLEANED_TAG
from serving.registry.model_registry import parse_reference

SHORTEST_DIGEST: Final = 6
_UP: Final = 4
"""Folders above a file in which its artefact is looked for."""


@dataclass(frozen=True)
class Node:
    """One thing.

    Attributes:
        key: ``artifact:<digest>``, ``version:<name>/<number>`` or ``job:<folder>``.
        kind: Kind of the artefact, ``version``, or ``candidates`` of a job outside of the folder.
        name: What people call it.
        state: ``there``, ``cleaned`` (it was deleted, its line is left) or ``missing`` (nothing is known but the digest).
        facts: What else is known.
    """

    key: str
    kind: str
    name: str
    state: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lineage:
    """The part of the graph around some nodes.

    Attributes:
        asked: Keys of what was asked for.
        nodes: By key, all that the edges name.
        edges: ``(child, role, parent)``.
        notes: What could not be looked up.
    """

    asked: tuple[str, ...]
    nodes: Mapping[str, Node]
    edges: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``made_from`` and ``made_into`` hold the edges on either side of what was asked for."""
        sides = {"made_from": self._side(0, 2), "made_into": self._side(2, 0)}
        keys = {
            *self.asked,
            *(key for edges in sides.values() for child, _, parent in edges for key in (child, parent)),
        }
        nodes = {
            key: {"kind": node.kind, "name": node.name, "state": node.state, **node.facts}
            for key, node in self.nodes.items()
            if key in keys
        }
        named = {
            side: [dict(zip(("child", "role", "parent"), edge, strict=True)) for edge in edges]
            for side, edges in sides.items()
        }
        return {"asked": list(self.asked), "nodes": nodes, **named, "notes": list(self.notes)}

    def _side(self, here: int, there: int) -> list[tuple[str, str, str]]:
        found, waiting, seen = [], list(self.asked), set(self.asked)
        while waiting:
            key = waiting.pop(0)
            for edge in self.edges:
                if edge[here] == key:
                    found.append(edge)
                    if edge[there] not in seen:
                        seen.add(edge[there])
                        waiting.append(edge[there])
        return found

    def to_text(self) -> str:
        """Two trees per thing that was asked for."""
        lines: list[str] = []
        for key in self.asked:
            lines += [_words(self.nodes[key]), "made from"]
            lines += self._tree(key, 0, 2, {key}) or ["  nothing that is known"]
            lines += ["made into"]
            lines += self._tree(key, 2, 0, {key}) or ["  nothing yet"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _tree(self, key: str, here: int, there: int, seen: set[str], depth: int = 1) -> list[str]:
        lines = []
        for edge in self.edges:
            if edge[here] != key:
                continue
            node = self.nodes[edge[there]]
            again = node.key in seen
            role = f"{edge[1]}: " if there == 2 else ""
            lines.append(f"{'  ' * depth}{role}{f'{_name(node)} (above)' if again else _words(node)}")
            if not again:
                seen.add(node.key)
                lines += self._tree(node.key, here, there, seen, depth + 1)
        return lines


def lineage_of(what: str, inventory: Inventory, registered_name: str) -> Lineage:
    """Find what a word names, and what it was made from and into.

    Args:
        what: A version (``3``, ``models:/name/3``, ``models:/name@champion``, ``@champion``), a path (an artefact or a file
            in it, a folder of candidates or one shard), or the first digits of an artefact's or semantic-ID table's digest.
        registered_name: The model that ``@alias`` and a number mean.

    Raises:
        ConfigError: It names nothing, or several things.
        ArtifactError: There is no such version, or the folder or file belongs to no artefact.
    """
    graph = _Graph(inventory)
    asked = graph.resolve(what, registered_name)
    notes = [] if inventory.registry_error is None else [f"versions are not known: {inventory.registry_error}"]
    notes += [f"'{path}' cannot be opened, and is left out" for path in inventory.unreadable]
    return Lineage(tuple(asked), graph.nodes, tuple(graph.edges), tuple(notes))


class _Graph:
    """All nodes and edges."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.nodes: dict[str, Node] = {}
        self.edges: list[tuple[str, str, str]] = []
        for version in inventory.versions:
            aliases = inventory.aliases_of(version)
            name = f"version {version.number} of {version.name}" + (f" ({', '.join(aliases)})" if aliases else "")
            key = self._version_key(version.name, version.number)
            facts: dict[str, Any] = {"aliases": aliases, "tags": version.tags}
            cleaned = version.tags.get(CLEANED_TAG)
            if cleaned is not None:
                facts["cleaned_at"] = cleaned
            self.nodes[key] = Node(key, "version", name, "there" if cleaned is None else "cleaned", facts)
            if BUNDLE_TAG in version.tags:
                self._edge(key, "export", self._artefact(version.tags[BUNDLE_TAG], "bundle"))
        for digest in list(inventory.artefacts):
            self._artefact(digest)

    def resolve(self, what: str, registered_name: str) -> list[str]:
        """Return the keys that a word means."""
        reference = f"models:/{registered_name}{what}" if what.startswith("@") else what
        if reference.startswith("models:/"):
            return [self._version(reference)]
        path = Path(what).expanduser()
        if what and path.exists():
            return [self._at(path)]
        digits = what.lower()
        if digits.isdecimal() and len(digits) < SHORTEST_DIGEST:
            return [self._version(f"models:/{registered_name}/{int(digits)}")]
        if len(digits) < SHORTEST_DIGEST or set(digits) - set("0123456789abcdef"):
            raise ConfigError(
                f"'{what}' is no file or folder, no version (3, models:/name/3, models:/name@alias, @champion), and no "
                f"digest of at least {SHORTEST_DIGEST} digits"
            )
        artefacts = self.inventory.artefacts.values()
        found = [one.digest for one in artefacts if one.digest.startswith(digits)]
        if not found:  # a table of IDs is known by what is in it: whoever made the same has the same IDs
            ids = [one for one in artefacts if str(one.facts.get("semantic_id_digest", "")).startswith(digits)]
            tables = [one for one in ids if one.kind == "semantic_ids"]
            return self._only(what, [one.digest for one in tables or ids[:1]], several=True)
        return self._only(what, found)

    def _only(self, what: str, digests: Sequence[str], several: bool = False) -> list[str]:
        if not digests:
            raise ConfigError(
                f"no artefact or table of semantic IDs of this output folder has a digest that begins with '{what}'"
            )
        if len(digests) > 1 and not several:
            names = ", ".join(f"{self.inventory.artefacts[one].kind} {one[:16]}" for one in digests)
            raise ConfigError(f"'{what}' is the beginning of several digests: {names}; give more digits")
        return [f"artifact:{digest}" for digest in digests]

    def _version(self, reference: str) -> str:
        name, alias, number = parse_reference(reference)
        if alias is not None:
            number = self.inventory.aliases.get(name, {}).get(alias)
        key = self._version_key(name, str(number))
        if key not in self.nodes and self.inventory.registry_error is not None:
            raise ArtifactError(
                f"whether '{reference}' was registered from this output folder is not known: {self.inventory.registry_error}"
            )
        if key not in self.nodes:
            there = ", ".join(node.name for node in self.nodes.values() if node.kind == "version") or "none"
            raise ArtifactError(f"'{reference}' is not registered from this output folder; there are: {there}")
        return key

    def _at(self, path: Path) -> str:
        for folder in [path, *path.absolute().parents][: _UP + 1]:
            if (folder / MANIFEST_NAME).is_file():
                known = known_of(open_artifact(folder, verify=False))
                self.inventory.artefacts.setdefault(known.digest, known)
                return self._artefact(known.digest)
            if (folder / JOB_FILE).is_file():
                return self._job(folder)
        if path.suffix == ".parquet" and path.is_file():
            return self._shard(path)
        raise ArtifactError(
            f"'{path}' belongs to no artefact and no batch job: neither it nor a folder above it holds a {MANIFEST_NAME} or "
            f"a {JOB_FILE}, and it is no shard of candidates"
        )

    def _job(self, folder: Path) -> str:
        labels = read_json(folder / JOB_FILE)
        if not isinstance(labels, dict):
            raise ArtifactError(f"'{folder / JOB_FILE}' is no record of a batch job")
        return self._candidates(folder, labels)

    def _shard(self, path: Path) -> str:
        names = [
            Columns.MODEL_NAME,
            Columns.MODEL_VERSION,
            Columns.SEMANTIC_ID_DIGEST,
            Columns.RUN_ID,
            Columns.SCORED_AT,
        ]
        try:
            first = pl.scan_parquet(path, glob=False).select(names).head(1).collect()
        except pl.exceptions.PolarsError as error:
            raise ArtifactError(f"'{path}' is no shard of candidates: {str(error).splitlines()[0]}") from error
        if not len(first):
            raise ArtifactError(f"'{path}' holds no rows, so that it does not say which model made it")
        return self._candidates(path, {name: str(first[name][0]) for name in names})

    def _candidates(self, place: Path, labels: Mapping[str, Any]) -> str:
        """Candidates outside of the folder: they carry the name and number of their model."""
        key = f"job:{place.absolute()}"
        facts = {name: labels.get(name) for name in (Columns.RUN_ID, Columns.SCORED_AT, Columns.SEMANTIC_ID_DIGEST)}
        self.nodes[key] = Node(key, "candidates", str(place), "there", facts)
        name, number = str(labels.get(Columns.MODEL_NAME)), str(labels.get(Columns.MODEL_VERSION))
        if number.startswith("unregistered-"):
            digits = number.removeprefix("unregistered-")
            policy = next((one for one in self.inventory.artefacts if one.startswith(digits)), digits)
            self._edge(key, "policy", self._artefact(policy, "policy"))
            return key
        version = self._version_key(name, number)
        if version not in self.nodes:
            self.nodes[version] = Node(version, "version", f"version {number} of {name}", "missing")
        self._edge(key, "model", version)
        return key

    def _artefact(self, digest: str, kind: str = "artefact") -> str:
        key = f"artifact:{digest}"
        if key in self.nodes and self.nodes[key].state != "missing":
            return key
        known = self.inventory.artefacts.get(digest)
        if known is None:
            self.nodes[key] = Node(key, kind, digest[:16], "missing")
            return key
        when = datetime.fromtimestamp(known.made_at, UTC).isoformat(timespec="seconds")
        facts = {"digest": digest, "made_at": when, "bytes": known.bytes, **known.facts}
        facts |= {"path": str(known.path)} if known.path else {"cleaned_at": known.cleaned_at}
        self.nodes[key] = Node(key, known.kind, digest[:16], "there" if known.path else "cleaned", facts)
        for role, parent in known.parents.items():
            if role == "export" and (version := self._served_by(known.model, parent)) is not None:
                self._edge(key, "model", version)
            else:
                self._edge(key, role, self._artefact(parent, role.removeprefix(BASE_PREFIX)))
        return key

    def _served_by(self, model: str | None, bundle: str) -> str | None:
        """The version that candidates name, if it is of the bundle that they were made with."""
        for version in self.inventory.versions:
            if version.reference == model and version.tags.get(BUNDLE_TAG) == bundle:
                return self._version_key(version.name, version.number)
        return None

    def _edge(self, child: str, role: str, parent: str) -> None:
        if (child, role, parent) not in self.edges:
            self.edges.append((child, role, parent))

    @staticmethod
    def _version_key(name: str, number: str) -> str:
        return f"version:{name}/{number}"


def _name(node: Node) -> str:
    return node.name if node.kind == "version" else f"{node.kind} {node.name}"


def _words(node: Node) -> str:
    """One thing on one line."""
    parts = [_name(node)]
    if node.state == "missing":
        parts.append("not here: cleaned away or never made in this folder")
    elif node.state == "cleaned":
        parts.append(f"cleaned away {node.facts['cleaned_at']}")
    if "made_at" in node.facts:
        parts.insert(1, f"made {node.facts['made_at']}")
    if node.kind == "semantic_ids" and "semantic_id_digest" in node.facts:
        parts.append(f"IDs {str(node.facts['semantic_id_digest'])[:16]}")
    if node.facts.get("path"):
        parts.append(str(node.facts["path"]))
    return ", ".join(parts)

"""KuaiRand Pure, 1K and 27K in their original files: exposures of short videos with watch time and feedback.

Reads a folder, or the ``data`` folder in it; produces ``RawTables``.

    log_standard_4_08_to_4_21_pure.csv      exposures by the app's policies; 27K has them in parts, _part1 before _part2
    log_standard_4_22_to_5_08_pure.csv
    log_random_4_22_to_5_08_pure.csv        exposures of videos drawn at random
    video_features_basic_pure.csv           author, type, tags
    user_features_pure.csv

``video_features_statistic_*`` is left alone: it sums up the whole month, the test days included.

Source: Gao et al. 2022 and the README of the data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from features.reading import OpenedTable, TextFormat, open_text
from features.sources.formats.layout import (
    REMEDY,
    FormatSource,
    files_in,
    refuse_packed,
    refuse_two_of_one,
    there,
)
from features.sources.mapped import TableKind
from recsys.contracts.errors import DataError

_FILE: Final = re.compile(
    r"(log_standard|log_random|video_features_basic|user_features)(_.*)?_(pure|1k|27k)(_part\d+)?\.csv(?:\.gz)?",
    re.IGNORECASE,
)
_STANDARD: Final = ("4_08_to_4_21", "4_22_to_5_08")
"""Days of the standard logs, which every version has."""
_TEXT: Final = TextFormat(remedy=REMEDY, encoding_key=False)
_SIGNALS: Final = {
    "long_view": "long_view",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "share": "is_forward",
    "dislike": "is_hate",
}
RANDOM_EXPOSURE: Final = "random_exposure"


class KuaiRandSource(FormatSource):
    """KuaiRand in its original files.

    The signals are ``long_view, like, follow, comment, share, dislike``; ``long_view`` and ``like`` make an event positive.
    Other columns may be declared as signals: ``is_click``, ``is_profile_enter``, and ``tab``, the place in the app, as
    ``{name: main_feed, column: tab, equals: 1}``. Ids are integers, times milliseconds.

    Attributes:
        version: ``pure``, ``1k`` or ``27k``; not given: the one whose logs are in the folder.
        random_log: What becomes of exposures that were drawn at random: ``leave_out``, or ``signal``, which reads them as
            well and marks them by the signal ``random_exposure``. They show what users do with what no policy chose.
        kind: Names this form of source.
        user_id_column: Id column of the table of users.

    Example:
        >>> [signal.column for signal in KuaiRandSource(path="kuairand").signals][:2]
        ['long_view', 'is_like']
    """

    kind: Literal["kuairand"] = "kuairand"
    version: Literal["pure", "1k", "27k"] | None = None
    random_log: Literal["leave_out", "signal"] = "leave_out"

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys that all versions share."""
        signals = _SIGNALS | ({RANDOM_EXPOSURE: "is_rand"} if given.get("random_log") == "signal" else {})
        return {
            "columns": {
                "user_id": "user_id",
                "item_id": "video_id",
                "timestamp": "time_ms",
                "watch_time": "play_time_ms",
                "duration": "duration_ms",
            },
            "types": {"user_id": "integer", "video_id": "integer"},
            "timestamp_unit": "ms",
            "watch_unit": "ms",
            "signals": [{"name": name, "column": column} for name, column in signals.items()],
            "positive": ["long_view", "like"],
            "item_columns": {
                "item_id": "video_id",
                "text": [{"column": name, "optional": True} for name in ("video_type", "upload_type")],
                "categories": [{"column": "tag", "separator": ",", "optional": True}],
                "author": [{"column": "author_id", "optional": True}],
            },
            "user_id_column": "user_id",
        }

    @property
    def facts(self) -> dict[str, object]:
        """The version and its files."""
        facts: dict[str, object] = {
            "layout": f"kuairand {self._version()}",
            "files_read": [path.name for path in self._files()],
        }
        missing = self._missing_logs()
        if missing:
            facts["warnings"] = [
                f"the log is not whole: {', '.join(missing)} not there; fetch it, if it is not left out on purpose"
            ]
        return facts

    def _missing_logs(self) -> list[str]:
        """Name the standard logs that every version has, and the numbers that are left out among the parts of one."""
        version = self._version()
        parts: dict[str, set[int]] = {f"log_standard_{days}_{version}": set() for days in _STANDARD}
        for path in self._paths("interactions"):
            stem, _, number = path.name.lower().split(".")[0].partition("_part")
            parts.setdefault(stem, set()).add(int(number or 1))
        return [
            f"{stem}_part{number}.csv" if numbers else f"{stem}.csv"
            for stem, numbers in parts.items()
            for number in range(1, max(numbers, default=1) + 1)
            if number not in numbers
        ]

    def _expected(self, kind: TableKind) -> str:
        name = "video_features_basic" if kind == "items" else "user_features"
        return f"'{name}_{self._version()}.csv' in '{self._folder().name}'"

    def _files(self) -> Iterator[Path]:
        for kind in ("interactions", "items", "users"):
            yield from self._paths(kind)

    def _open(self, kind: TableKind) -> OpenedTable | None:
        paths = self._paths(kind)
        if not paths:
            return None
        where = str(paths[0]) if len(paths) == 1 else f"{self._folder() / 'log_*'}"
        return open_text(paths, self._folder(), _TEXT, where)

    def _folder(self) -> Path:
        """``path`` or the ``data`` folder in it, wherever the logs are."""
        for folder in (self.path, self.path / "data"):
            if folder.is_dir() and any(_FILE.fullmatch(path.name) for path in folder.iterdir()):
                return folder
        if not self.path.is_dir():
            raise DataError(f"'{self.path}' is no folder; set source.path to the folder that KuaiRand unpacks to")
        raise DataError(
            f"'{self.path}' has no KuaiRand files: expected log_standard_*_pure.csv, _1k or _27k there or in its folder "
            f"'data'; {there(self.path)}"
        )

    def _version(self) -> str:
        folder = self._folder()
        found = sorted({match.group(3).lower() for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))})
        if self.version is not None:
            return self.version
        if len(found) > 1:
            raise DataError(f"'{folder}' holds several versions: {', '.join(found)}; set source.version to one of them")
        return found[0]

    def _paths(self, kind: str) -> list[Path]:
        """Files of a table, in order of time; none where the table is not there."""
        wanted = {"items": ["video_features_basic"], "users": ["user_features"], "interactions": ["log_standard"]}.get(
            kind, []
        )
        if kind == "interactions" and self.random_log == "signal":
            wanted.append("log_random")
        folder, version = self._folder(), self._version()
        found: dict[str, list[Path]] = {name: [] for name in wanted}
        for path in files_in(folder):
            match = _FILE.fullmatch(path.name)
            if match and match.group(1).lower() in found and match.group(3).lower() == version:
                found[match.group(1).lower()].append(path)
        paths = [path for name in wanted for path in found[name]]
        for name in wanted:
            if kind == "interactions" and not found[name]:
                raise DataError(
                    f"'{folder}' has no {name}_*_{version}.csv; {there(folder)}. Set source.path or source.version"
                )
        refuse_packed(folder, lambda bare: bool((of := _FILE.fullmatch(bare)) and of.group(1).lower() in found))
        refuse_two_of_one(
            folder, ((path.name.lower().removesuffix(".gz"), path) for path in paths), "delete one of them"
        )
        return paths

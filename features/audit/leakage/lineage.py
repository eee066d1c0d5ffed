"""Leaks by way of what was fitted earlier: embeddings, semantic IDs and policies that read events later than the targets.

Reads the manifests of artefacts and the data sets that they name as parents; produces findings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from features.audit.leakage.asked_rows import Arrays, AskedRows, BoolArray
from features.audit.leakage.findings import Finding
from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import Artifact

PREPARE = "prepare"

DataFinder = Callable[[str], Path | None]
"""Folder of the prepared data with a digest, ``None`` where it is gone."""


def fitted_on_later_events(arrays: Arrays, rows: AskedRows, artefacts: Sequence[Artifact]) -> list[Finding]:
    """Find targets that are earlier than the events which embeddings, IDs or policy of the same data were fitted on.

    The price counts rows whose step (last item of the history -> right item) somebody took in those later events.

    Args:
        artefacts: Those whose parent is this very data set.
    """
    if not artefacts:
        return []
    latest = int(arrays.latest_train_time.max(initial=-1))
    touched = (rows.time >= 0) & (rows.time < latest)
    if not touched.any():
        return []
    readable = _step_is_taken_later(arrays, rows, touched)
    names = ", ".join(f"{artefact.manifest.kind} ({artefact.digest[:16]})" for artefact in artefacts)
    return [
        Finding(
            code="fitted_on_later_events",
            title="Embeddings, IDs or policy were fitted on events later than targets",
            severity="warning",
            **rows.about(touched, arrays.user_ids),
            words=f"{names}: fitted on train events up to {_date(latest)}, while {int(touched.sum()):,} of {len(rows):,} "
            f"targets are earlier; {int(readable.sum()):,} of them repeat a step that somebody took in the later events",
            advice="split all users at the same instants (features.split.kind: global_temporal); what is fitted on train "
            "events is then older than every target",
            hr_bound=float(readable.mean()),
        )
    ]


def _step_is_taken_later(arrays: Arrays, rows: AskedRows, touched: BoolArray) -> BoolArray:
    item, owner, time = arrays.train_item, arrays.train_owner, arrays.train_time
    same = owner[1:] == owner[:-1]
    width = arrays.num_items
    steps = pl.DataFrame({"step": item[:-1][same].astype(np.int64) * width + item[1:][same], "time": time[1:][same]})
    latest = steps.group_by("step").agg(pl.col("time").max())
    has_last = touched & (rows.targets.history_end > rows.targets.history_start)
    last = arrays.item[np.maximum(rows.targets.history_end - 1, 0)].astype(np.int64)
    asked = pl.DataFrame({"step": last[rows.row] * width + rows.targets.items, "asked": rows.time[rows.row]})
    found = asked.join(latest, on="step", how="left", maintain_order="left")
    later = (found["time"] > found["asked"]).fill_null(False).to_numpy()
    return rows.any_of(later & has_last[rows.row])


def fitted_on_other_data(
    arrays: Arrays, rows: AskedRows, artefacts: Sequence[Artifact], data_of: DataFinder
) -> list[Finding]:
    """Find artefacts whose parent is another prepared data set, and say whether that one reaches into the targets' time.

    Args:
        artefacts: Those whose parent is not this data set.
        data_of: Finds the other one.
    """
    found = []
    for artefact in artefacts:
        parent = artefact.manifest.parents.get(PREPARE, "")
        name = f"{artefact.manifest.kind} ({artefact.digest[:16]})"
        folder = data_of(parent)
        if folder is None:
            found.append(_cannot_tell(rows, name, parent))
            continue
        latest = int(Arrays.of(Dataset.open(folder)).latest_train_time.max(initial=-1))
        touched = (rows.time >= 0) & (rows.time <= latest)
        if not touched.any():
            continue
        found.append(
            Finding(
                code="fitted_on_other_data",
                title="An artefact was fitted on other data that reach into the evaluated time",
                severity="severe",
                **rows.about(touched, arrays.user_ids),
                words=f"{name} was fitted on the train events of other prepared data ({parent[:16]}) up to {_date(latest)}; "
                f"{int(touched.sum()):,} of {len(rows):,} targets are not later than that",
                advice="fit it again on these data: delete the artefact and run its stage",
                hr_bound=float(touched.mean()),
            )
        )
    return found


def _cannot_tell(rows: AskedRows, name: str, parent: str) -> Finding:
    return Finding(
        code="fitted_on_unknown_data",
        title="What an artefact was fitted on cannot be told",
        severity="warning",
        split=rows.split,
        rows=len(rows),
        of=len(rows),
        words=f"{name} was fitted on prepared data {parent[:16] or 'that it does not name'}, which are not in this output "
        "folder; whether they reach into the evaluated time is not known",
        advice="audit it in the output folder where its data are, or fit it again",
        hr_bound=1.0,
    )


def _date(microseconds: int) -> str:
    return (
        datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M") if microseconds >= 0 else "no time"
    )

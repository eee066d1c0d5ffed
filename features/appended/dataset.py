"""A prepared data set from a log that is being merged: what is kept, then the files, then counts.

Reads a :class:`~features.log.append.Merge`; produces the files of :func:`features.build.prepare`, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from features.appended.by_users import Rules, Written, write_by_users
from features.appended.kept_rows import KeptRows, Settling, kept_rows
from features.build import (
    LOG_FOLDER,
    FeaturesConfig,
    cut_rule,
    dataset_spec,
)
from features.data_report import all_facts, event_facts, history_counts, row_counts, session_facts
from features.items import build_item_table
from features.log.append import Merge, runs_of_users
from features.log.encode import ReadLog
from features.log.encoded_log import StoredLog
from features.log.event_log import Core, Outcome, check_not_all_gone
from features.log.quarantine import and_duplicates, check_share
from features.refused import RefusedRows
from features.sources.base import RawTables
from features.splits import check_not_empty, cut_facts, given_cuts
from features.tables import Prepared, Rest, users_table, write_rest
from recsys.contracts.contents import read_meanwhile

EARLIEST: Final = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Certain:
    """What an earlier data set tells of one with more rows.

    Attributes:
        core: Users and items whose common rows were kept then and are kept now.
        late: A time that lies somewhat before validation began then, UTC microseconds; ``None`` where it had no date.
    """

    core: Core
    late: int | None


def why_all_at_once(raw: RawTables, config: FeaturesConfig) -> str | None:
    """Say what of a configuration looks at all events at once; ``None`` where they can be made some users at a time."""
    if config.derived_signals:
        return "features.derived_signals has bounds over all events"
    if config.sessions.high_quality is not None:
        return "features.sessions.high_quality compares sessions of all users"
    if config.split.kind == "given":
        return "a given split is checked over all events"
    if config.split.kind == "global_temporal" and not raw.has_timestamps:
        return "a split by time needs times"  # it is refused there, as it is without an earlier data set
    return None


def prepare_by_users(
    raw: RawTables, read: ReadLog, merge: Merge, certain: Certain, config: FeaturesConfig, out_dir: Path
) -> Prepared:
    """Write the prepared data set, and the log beside it.

    Args:
        raw: For the items, the users and what the source declared.
        read: What was read of all files; its log has no events.
        merge: Of the log read earlier and the new one.
        certain: What is known before.
        config: What to make of it; one that :func:`why_all_at_once` has nothing against.
        out_dir: Folder to write into.

    Returns:
        What was written, with the data report.
    """
    runs = runs_of_users(merge.starts)
    settling = Settling(certain.core, config.k_core, config.duplicates, raw.merge_rules)
    log = merge.write(out_dir / LOG_FOLDER, runs, settling.see)
    kept, cuts = _kept(log, runs, settling, certain, config)
    repeated = sum(map(len, settling.repeats.values()))
    check_not_all_gone(kept.events, len(log), config.k_core, positive=bool(settling.user_events.any()))
    kept.core.save(out_dir / LOG_FOLDER)
    merged, dropped = settling.tables(log.head)
    outcome = Outcome(merged, dropped, len(log) - repeated - kept.events, kept.events)
    quarantine = and_duplicates(read.refused, dropped)
    check_share(quarantine, read.rows_in, config.quarantine)
    item_ids = log.head.item_ids.filter(kept.core.item)
    items = build_item_table(item_ids, raw.items, config.items)
    number = np.cumsum(kept.core.item, dtype=np.int32) - np.int32(1)
    rule = cut_rule(raw, config)
    rules = Rules(config, raw.merge_rules, rule, cuts, items, items.event_item_index[number], settling.repeats)
    with read_meanwhile(out_dir):  # the log
        written = write_by_users(log, kept, rules, out_dir)
    rest = _rest(raw, read, log, kept, rules, written, outcome, quarantine)
    check_not_empty(rest.report, raw.positive)
    write_rest(out_dir, rest, written.train_count)
    return Prepared.of(rest)


def _kept(
    log: StoredLog, runs: list[tuple[int, int]], settling: Settling, certain: Certain, config: FeaturesConfig
) -> tuple[KeptRows, tuple[int, int] | None]:
    """Mark the rows that are kept, and find out when validation and test begin; ``None`` where no time says it."""
    stays, split = settling.k_core(), config.split
    both = config.k_core.user > 0 and config.k_core.item > 0
    if split.kind != "global_temporal" or given_cuts(split) is not None:
        return kept_rows(log, runs, settling.repeats, stays, None, both_limited=both), given_cuts(split)
    for since in (EARLIEST,) if certain.late is None else (certain.late, EARLIEST):
        kept = kept_rows(log, runs, settling.repeats, stays, since, both_limited=both)
        cuts = kept.cut_times(split.valid_share, split.test_share) if kept.events else (0, 0)
        if cuts is not None:
            break
    return kept, cuts


def _rest(
    raw: RawTables,
    read: ReadLog,
    log: StoredLog,
    kept: KeptRows,
    rules: Rules,
    written: Written,
    outcome: Outcome,
    quarantine: RefusedRows,
) -> Rest:
    user_ids, item_ids = log.head.user_ids.filter(kept.core.user), log.head.item_ids.filter(kept.core.item)
    config, items, targets, tally = rules.config, rules.items, written.all_targets(), written.tally
    assert tally is not None  # some event is kept
    users, user_facts = users_table(user_ids, raw.users)
    split = cut_facts(rules.cuts) if rules.cuts is not None else {"kind": config.split.kind, "leaks_across_time": True}
    facts = event_facts(tally, log.head.signals)
    report = {
        **row_counts(read, quarantine, outcome),
        "split": split,
        "sessions": session_facts(rules.sessions, tally, written.session_lengths),
        **history_counts(tally, written.borders, targets),
        **items.facts,
        **user_facts,
        **all_facts(raw, read, quarantine, facts, (user_ids, item_ids), {**items.facts, **user_facts}),
    }
    return Rest(
        items=items,
        users=users,
        targets=targets,
        quarantine=quarantine,
        merged=outcome.merged,
        spec=dataset_spec(raw, len(user_ids), log.head.signals, items, config),
        report=report,
    )

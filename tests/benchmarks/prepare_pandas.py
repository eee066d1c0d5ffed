"""What research code does before training, in pandas, as something to measure `prepare` against.

Run: ``python -m tests.benchmarks.prepare_pandas script|lean|columns LOG.csv FOLDER``.

All three write the same lines: of every event but a user's first, the user, at most 10 items before it, and the item; all
events sorted by time and cut 80/10/10. The k-core is 5.

    script   the way of the public MiniOneRec preprocessing (Amazon 2018), written anew, for the columns of a log: rows as
             dicts, passes over them until nothing falls out of the k-core, one grouping to number users and items, one to
             build the rows, each with lists of items, numbers, ratings and times, text files, and from these by pandas the
             CSV that training reads
    lean     the same loops, once, with nothing carried along that the lines do not hold, and no CSV
    columns  the same lines by pandas operations on whole columns

``expand`` writes such lines from a prepared data set into a folder that has the numbers of users and items already.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

CORE: Final = 5
MOST_HISTORY: Final = 10
SPLITS: Final = ("train", "valid", "test")
Record = dict[str, Any]


def script(log: Path, folder: Path) -> None:
    """Rows as dicts in loops, with everything that the public script carries along."""
    import pandas as pd

    kept = _core_of_records(pd.read_csv(log).to_dict("records"))
    user_number, item_number, sequences = _number_in_order(kept)
    lists: dict[str, dict[str, list[Any]]] = {}
    for review in kept:
        own = lists.setdefault(review["user_id"], {"items": [], "ratings": [], "times": [], "numbers": []})
        own["items"].append(review["item_id"])
        own["ratings"].append(review["rating"])
        own["times"].append(review["timestamp"])
        own["numbers"].append(item_number[review["item_id"]])
    rows: list[list[Any]] = []
    for user, own in lists.items():
        joined = sorted(zip(*own.values(), strict=True), key=lambda event: int(event[2]))
        items, ratings, times, numbers = (list(values) for values in zip(*joined, strict=True))
        for place in range(1, len(items)):
            start = max(place - MOST_HISTORY, 0)
            row = [user, items[start:place], items[place], numbers[start:place], numbers[place]]
            rows.append([*row, ratings[start:place], ratings[place], times[start:place], times[place]])
    rows.sort(key=lambda row: int(row[-1]))
    cuts = _write_lines(folder, [(user_number[row[0]], row[3], row[4], row[-1]) for row in rows])
    _write_names(folder, user_number, item_number, cuts)
    (folder / "sequences.json").write_text(json.dumps(sequences))
    for name in SPLITS:
        with (folder / f"{name}.inter").open(encoding="utf-8") as file:
            lines = [line.strip().split("\t") for line in file.readlines()[1:]]
        samples = [
            {"user_id": f"A{user}", "history_item_id": [int(item) for item in history.split()], "item_id": int(item)}
            for user, history, item in lines
        ]
        pd.DataFrame(samples).to_csv(folder / f"{name}.csv", index=False)


def lean(log: Path, folder: Path) -> None:
    """Rows as dicts in loops, only what the lines hold."""
    import pandas as pd

    kept = _core_of_records(pd.read_csv(log, usecols=["user_id", "item_id", "timestamp"]).to_dict("records"))
    by_user: dict[str, list[Record]] = defaultdict(list)
    for review in kept:
        by_user[review["user_id"]].append(review)
    user_number: dict[str, int] = {}
    item_number: dict[str, int] = {}
    rows = []
    for user, reviews in by_user.items():
        user_number[user] = len(user_number)
        reviews.sort(key=lambda review: int(review["timestamp"]))
        items = [item_number.setdefault(review["item_id"], len(item_number)) for review in reviews]
        for place in range(1, len(items)):
            history = items[max(place - MOST_HISTORY, 0) : place]
            rows.append((user_number[user], history, items[place], int(reviews[place]["timestamp"])))
    rows.sort(key=lambda row: row[3])
    _write_names(folder, user_number, item_number, _write_lines(folder, rows))


def _number_in_order(reviews: list[Record]) -> tuple[dict[str, int], dict[str, int], dict[int, list[int]]]:
    """Number users and items as they appear, users in the order of the log and items in the order of each user's time."""
    by_user: dict[str, list[Record]] = defaultdict(list)
    for review in reviews:
        by_user[review["user_id"]].append(review)
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    sequences: dict[int, list[int]] = {}
    for user, own in by_user.items():
        users[user] = len(users)
        own.sort(key=lambda review: int(review["timestamp"]))
        sequences[users[user]] = [items.setdefault(review["item_id"], len(items)) for review in own]
    return users, items, sequences


def _write_lines(folder: Path, rows: list[tuple[int, list[int], int, int]]) -> list[int]:
    """Write the three files and return the first instants of valid and test."""
    ends = [int(len(rows) * 0.8), int(len(rows) * 0.9), len(rows)]
    begin = 0
    for name, end in zip(SPLITS, ends, strict=True):
        with (folder / f"{name}.inter").open("w", encoding="utf-8") as file:
            file.write("user_id\titem_id_list\titem_id\n")
            for user, history, item, _ in rows[begin:end]:
                file.write(f"{user}\t{' '.join(map(str, history))}\t{item}\n")
        begin = end
    return [int(rows[end][3]) for end in ends[:2]]


def _core_of_records(reviews: list[Record]) -> list[Record]:
    thin_users: set[str] = set()
    thin_items: set[str] = set()
    while True:
        left: list[Record] = []
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        for review in reviews:
            user, item = review["user_id"], review["item_id"]
            if user in thin_users or item in thin_items:
                continue
            users[user] = users.get(user, 0) + 1
            items[item] = items.get(item, 0) + 1
            left.append(review)
        fallen_users = {user for user, count in users.items() if count < CORE}
        fallen_items = {item for item, count in items.items() if count < CORE}
        if not fallen_users and not fallen_items:
            return left
        thin_users |= fallen_users
        thin_items |= fallen_items
        reviews = left


def columns(log: Path, folder: Path) -> None:
    """The same rows by operations on columns."""
    import pandas as pd

    frame = pd.read_csv(log, usecols=["user_id", "item_id", "timestamp"])
    while True:
        by_user = frame.groupby("user_id")["item_id"].transform("size")
        by_item = frame.groupby("item_id")["user_id"].transform("size")
        stays = (by_user >= CORE) & (by_item >= CORE)
        if stays.all():
            break
        frame = frame[stays]
    frame["user"], user_names = pd.factorize(frame["user_id"])
    frame = frame.sort_values(["user", "timestamp"], kind="stable")
    frame["item"], item_names = pd.factorize(frame["item_id"])
    text = frame["item"].astype(str)
    history = pd.Series("", index=frame.index)
    for back in range(MOST_HISTORY, 0, -1):
        history += (text.groupby(frame["user"]).shift(back) + " ").fillna("")
    frame["history"] = history.str.rstrip()
    rows = frame[frame["history"] != ""].sort_values("timestamp", kind="stable")
    ends = [int(len(rows) * 0.8), int(len(rows) * 0.9), len(rows)]
    begin = 0
    for name, end in zip(SPLITS, ends, strict=True):
        part = rows.iloc[begin:end][["user", "history", "item"]]
        part.columns = pd.Index(["user_id", "item_id_list", "item_id"])
        part.to_csv(folder / f"{name}.inter", sep="\t", index=False)
        begin = end
    names = [{name: number for number, name in enumerate(names)} for names in (user_names, item_names)]
    _write_names(folder, *names, [int(rows["timestamp"].iloc[end]) for end in ends[:2]])


def _write_names(folder: Path, users: dict[str, int], items: dict[str, int], cuts: list[int]) -> None:
    for name, numbers in (("users", users), ("items", items)):
        with (folder / f"{name}.index").open("w", encoding="utf-8") as file:
            file.writelines(f"{key}\t{number}\n" for key, number in numbers.items())
    (folder / "cuts.json").write_text(json.dumps(cuts))


def expand(prepared: Path, folder: Path) -> None:
    """Write the same lines from a prepared data set without exposures, with the numbers of ``folder``'s index files."""
    for name in SPLITS:
        (folder / f"{name}.inter").unlink(missing_ok=True)
    for block in _expanded(prepared, folder):
        for (code,), part in block.partition_by("split", as_dict=True, include_key=False).items():
            with (folder / f"{SPLITS[int(code)]}.inter").open("ab") as handle:
                part.write_csv(handle, separator="\t", include_header=handle.tell() == 0)


def _expanded(prepared: Path, folder: Path, block: int = 500_000) -> Iterator[Any]:
    import numpy as np
    import polars as pl

    offsets = np.load(prepared / "history" / "offsets.npy")
    train_end, valid_end = (np.load(prepared / "history" / f"{name}.npy") for name in ("train_end", "valid_end"))
    item = np.load(prepared / "history" / "item.npy", mmap_mode="r")
    users, items = (_numbers(prepared, folder, kind) for kind in ("user", "item"))
    for first in range(0, len(item), block):
        last, begin = min(len(item), first + block), max(0, first - MOST_HISTORY)
        place = np.arange(begin, last)
        user = np.searchsorted(offsets, place, side="right") - 1
        rank = pl.Series("rank", place - offsets[user])
        names = items.gather(item[begin:last])
        window = pl.DataFrame(
            [
                pl.select(pl.when(rank >= back).then(names.shift(back))).to_series().alias(str(back))
                for back in range(MOST_HISTORY, 0, -1)
            ]
        )
        history = window.select(pl.concat_str(pl.all(), separator=" ", ignore_nulls=True)).to_series()
        split = (place >= train_end[user]).astype(np.int8) + (place >= valid_end[user])
        lines = pl.DataFrame({"user_id": users.gather(user), "item_id_list": history, "item_id": names})
        whole = lines.with_columns(pl.Series("split", split), rank).slice(first - begin)
        yield whole.filter(pl.col("rank") > 0).drop("rank")


def _numbers(prepared: Path, folder: Path, kind: str) -> Any:
    """The number, as text, of each user_index or item_index."""
    import polars as pl

    index = pl.read_csv(folder / f"{kind}s.index", separator="\t", has_header=False, new_columns=["id", "number"])
    ids = pl.read_parquet(prepared / f"{kind}s.parquet", columns=[f"{kind}_id"])
    joined = ids.join(index, left_on=f"{kind}_id", right_on="id", how="left", maintain_order="left")
    return joined["number"].cast(pl.String)


if __name__ == "__main__":
    form, source, target = sys.argv[1:]
    Path(target).mkdir(parents=True, exist_ok=True)
    {"script": script, "lean": lean, "columns": columns, "expand": expand}[form](Path(source), Path(target))

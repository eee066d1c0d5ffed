"""The example users of an evaluation as HTML: what they had, what came next, what the model answered.

Reads what :func:`~recsys.evaluation.examples.write_examples` wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from recsys.contracts.columns import Columns
from recsys.reports.html import item_title, paragraph


def example_users(examples: Mapping[str, Any]) -> str:
    """Return one card per user, under a paragraph that says how they were chosen."""
    users = examples["users"]
    filtered = "left out of the answer" if examples["exclude_seen"] else "may be answered again"
    note = (
        f"{len(users)} of {examples['rows']:,} rows of the {examples['split']} split, drawn at random with seed "
        f"{examples['seed']}, as {examples['system']} answered them; items of the history are {filtered}."
    )
    if examples["adjusted"]:
        note += " One of the drawn rows was exchanged, so that a hit and a miss can both be seen."
    return paragraph(note) + "".join(_user(user, examples) for user in users)


def _user(user: Mapping[str, Any], examples: Mapping[str, Any]) -> str:
    place = user["first_hit"]
    badge = (
        f'<span class="badge better">hit at place {place}</span>'
        if place is not None
        else f'<span class="badge worse">miss in the first {examples["k"]}</span>'
    )
    had = user["history_length"]
    shown = (
        f"last {len(user['history'])} of {had:,}" if had > len(user["history"]) else f"all {had:,}" if had else "empty"
    )
    more = user["next_length"] - len(user["next"])
    left = (
        f"<h4>History, {shown}, oldest first</h4>{_list('ol', user['history'])}"
        f"<h4>What really came next</h4>{_list('ul', user['next'], seen='in the history already')}"
    )
    if more > 0:
        left += paragraph(f"and {more:,} more")
    answer = user["answer"]
    right = f"<h4>The model's first {examples['k']}</h4>" + (
        _list("ol", answer) if answer else paragraph("No item was left to answer with.")
    )
    return (
        f'<article class="user"><h3>User <code>{escape(str(user[Columns.USER_ID]))}</code>{badge}</h3>'
        f'<div class="lists"><div>{left}</div><div>{right}</div></div></article>'
    )


def _list(tag: str, items: Sequence[Mapping[str, Any]], *, seen: str = "") -> str:
    if not items:
        return paragraph("nothing")
    entries = ""
    for item in items:
        mark = "hit" if tag == "ol" else "found"
        css = f' class="{mark}"' if item.get("hit") else ""
        note = f" <small>({escape(seen)})</small>" if seen and item["seen"] else ""
        entries += f"<li{css}>{item_title(item[Columns.TITLE], item[Columns.ITEM_ID])}{note}</li>"
    return f"<{tag}>{entries}</{tag}>"

"""The sentence that a result page leads with, written from the page's own rows, so that it cannot outlive them.

Cells are text as the tables show it: ``12.3 (11.9 … 12.8)`` is a ratio with its lowest and highest round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Rows = Sequence[Sequence[str]]


def ratio(cell: str) -> float:
    """The ratio of minima in front of a cell."""
    return float(cell.split()[0])


def span(values: Iterable[float], form: str) -> str:
    """``1.1 to 1.2``, or ``1.1`` where both ends read the same."""
    found = list(values)
    low, high = format(min(found), form), format(max(found), form)
    return low if low == high else f"{low} to {high}"


def of_presets(rows: Rows) -> str:
    """Smallest and largest, by the units in which the table is written."""
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    sizes = [(float(row[3].split()[0]) * units[row[3].split()[1]], row[3]) for row in rows]
    return f"The {len({row[0] for row in rows})} presets have between {min(sizes)[1]} and {max(sizes)[1]} parameters."


def of_decoder(rows: Rows) -> str:
    """The first row: the demo's size."""
    items, _, width, _, times, *_ = rows[0]
    return (
        f"Beam search of {width} over {items} items answers {ratio(times):.0f} times as many users per second as "
        "`transformers` generate with a prefix function."
    )


def of_constraint(rows: Rows) -> str:
    """The largest catalogue against the smallest."""
    small, large = rows[0], rows[-1]
    return (
        f"The constraint takes {small[3]} of decoding over {small[0]} items and {large[3]} over {large[0]}, where its index "
        f"holds {large[2]} bytes per item."
    )


def of_training(rows: Rows) -> str:
    """The first two rows: equal sizes, full and ragged."""
    full, ragged = rows[0], rows[1]
    real = ragged[0].split(", ")[1].split()[0]
    return (
        f"At equal sizes a training step is {ratio(full[5]):.1f} times as fast as T5's on full rows and "
        f"{ratio(ragged[5]):.1f} times as fast where {real} of the positions are real."
    )


def of_moe(rows: Rows) -> str:
    """Beyond the smallest number of tokens, which is all overhead."""
    fewest = min(int(row[1].replace(",", "")) for row in rows)
    large = [row for row in rows if int(row[1].replace(",", "")) > fewest]
    times = span((ratio(row[3]) for row in large), ".1f")
    return f"Eight experts take {times} times as long as the dense layer of equal FLOPs, above {fewest} tokens."


def of_rollouts(rows: Rows, size: int) -> str:
    """Dense feed-forward."""
    return (
        f"Encoding each history once makes the update of a policy-gradient step {ratio(rows[0][5]):.1f} times faster than "
        f"repeating it for {size} candidates."
    )


def of_alignment_speed(rows: Rows) -> str:
    """Medians and minima of every part."""
    parts = "; ".join(f"{row[0]} {row[3]} ({row[4]})" for row in rows)
    met = [row[0] for row in rows if min(float(row[3]), float(row[4])) >= 2.5]
    return (
        f"Times as fast as 7be21f4, medians (minima): {parts}. The goal of 2.5 is met by: {', '.join(met) or 'none'}."
    )


def of_successors(rows: Rows) -> str:
    """How many (data set, variant) reach HR@1 + 10 % with HR@50 not below the start, by their intervals."""
    aligned = [row for row in rows if row[1] != "next-token only"]
    stopped = {id(row): [part.startswith("0 of") for part in row[8].split(", ")] for row in aligned}
    kept = [row for row in aligned if not all(stopped[id(row)])]
    some = sum(any(stopped[id(row)]) for row in kept)
    rises = [row for row in kept if _interval(row[2])[0] > 0]
    falls = [row for row in kept if _interval(row[4])[1] < 0]
    both = [row for row in rises if ratio(row[2]) >= 10 and _interval(row[4])[0] >= 0]
    said = "; ".join(f"{row[1]} on {row[0]}" for row in both) or "none"
    return (
        f"Of {len(aligned)} pairs of data set and variant the guard stopped {len(aligned) - len(kept)} in round one under "
        f"every policy and {some} under some, all for depth; of the others HR@1 rises beyond its interval in {len(rises)} "
        f"and HR@50 falls beyond its own in {len(falls)}. HR@1 up by 10 % with the whole interval of HR@50 at or above the "
        f"start: {said}."
    )


def _interval(cell: str) -> tuple[float, float]:
    """Both ends of ``+4.2 % [+1.0, +7.3]``."""
    low, high = cell.split("[")[1].rstrip("]").split(",")
    return float(low), float(high)


def of_tables(rows: Rows) -> str:
    """The largest tables on which the ways that touch every row were run."""
    run = [row for row in rows if row[5] != "not run"]
    size = run[-1][0]
    times = span((ratio(cell) for row in run if row[0] == size for cell in row[5:]), ".0f")
    return (
        f"Row-wise Adagrad fused into the backward pass touches only the rows of a step: at {size} rows it is {times} times "
        "as fast as torch's AdamW and Adagrad, which touch every row."
    )


def of_batch_job(rows: Rows) -> str:
    """Speed and memory of the first row, illegal rows of all."""
    users, rate, peak = rows[0][1], ratio(rows[0][5]), rows[0][7]
    illegal = sum(int(row[9].replace(",", "")) for row in rows)
    return (
        f"Over {users} users the whole job runs at {rate:.2f} of the raw decoder's rate, with {peak} MB beside the model; "
        f"{illegal or 'no'} illegal row{'' if illegal == 1 else 's'}."
    )


def of_int8(rows: Rows) -> str:
    """The row after float32's."""
    _, _, times, kept, *_ = rows[1]
    return f"Int8 decodes {ratio(times):.1f} times as fast and keeps {float(kept):.0%} of the ten best items."


def of_guided_search(rows: Rows) -> str:
    """Times over the plain search's: with scores at hand, with the dense head's, and with everything that scores items."""
    parts = []
    for items in dict.fromkeys(row[0] for row in rows):
        took = {row[2]: ratio(row[4]) for row in rows if row[0] == items}
        names = ("guided, scores given", "guided by the dense head", "guided, dense head and all scorers")
        parts.append("at {} items {:.2f}, {:.2f} and {:.2f}".format(items, *(took[name] for name in names)))
    return f"Times of the plain search, with scores given, by the dense head, with all scorers: {'; '.join(parts)}."


def of_all_prefixes(rows: Rows) -> str:
    """Shuffled pairs, the usual form, without and with the dense head."""
    times = " and ".join(f"{ratio(row[4]):.1f} ({row[0]})" for row in rows if row[1] == "pairs, shuffled")
    return f"All prefixes in one pass train on {times} times as many targets per second as one target per row does."


def of_second_stage(rows: Rows, served: str) -> str:
    """What one way of selecting adds, policy by policy."""
    gains = "; ".join(f"{row[0]} {row[3]}" for row in rows if row[1] == served)
    return f"True utility of the {served} against the best beam: {gains}."


def of_reward_guidance(rows: Rows) -> str:
    """The strength that was chosen, beside choosing from the beam, and both."""
    guided = next(row for row in rows if row[0].endswith("*"))
    selected = next(row for row in rows if row[0].startswith("reward's best"))
    both = rows[-1]
    return (
        f"Guided by the reward, a search is worth {guided[2]} in true utility at {guided[6]} times the plain one's time; "
        f"choosing from its beams {selected[2]} at {selected[6]} times; both {both[2]} at {both[6]} times."
    )


def of_reward_combinations(chosen: Rows, aligned: Rows) -> str:
    """The transform and the personal weights beside the default; RSFT and user feedback beside next-token training."""
    by_name = {row[0]: row for row in [*chosen, *aligned]}
    log_sigmoid, personal = by_name["raw, log_sigmoid"], by_name["zscore, personal, shrinkage 20"]
    return (
        f"Choosing from beams by log_sigmoid rewards brings {log_sigmoid[5]} in true utility against z-scores, over seeds, "
        f"and by personal weights {personal[5]}; next-token training on the half of the sessions that was watched longest "
        f"{by_name['rsft, watch time'][3]}, on all {by_name['next-token only'][3]}, with user feedback beside it "
        f"{by_name['user feedback, weight .1'][3]}, IPA {by_name['ipa'][3]}."
    )


def of_worst_group(rows: Rows) -> str:
    """Per way, what becomes of the loss of the group with the largest one under the mean, and of all users' loss."""
    parts = []
    for way in dict.fromkeys(row[0] for row in rows):
        groups = [row for row in rows if row[0] == way and row[1] != "all users"]
        worst = max(groups, key=lambda row: float(row[3]))
        everybody = next(row for row in rows if row[0] == way and row[1] == "all users")
        gained = [row[1] for row in groups if _interval(row[4])[1] < 0]
        lost = [row[1] for row in groups if _interval(row[4])[0] > 0]
        step = way.removeprefix("worst group, ")
        parts.append(
            f"with {step} the test loss of the group that is worst under the mean, {worst[1]}, changes by {worst[4]}, that "
            f"of all users by {everybody[4]}, and the AUC from {everybody[6]} to {everybody[7]}; beyond the interval over "
            f"users the loss is lower for {', '.join(gained) or 'no group'}, higher for {', '.join(lost) or 'none'}"
        )
    return f"Reward models trained for the worst group instead of the mean: {'; '.join(parts)}."


def of_steering(rows: Rows) -> str:
    """The first line, served by the policy alone, end to end."""
    line, way = next((row[0], row[1]) for row in rows if row[2])
    first, *_, last = (row for row in rows if row[:2] == [line, way])
    return (
        f"One policy follows the weights it is given: {line}, watch time goes from {float(first[3]):.0f} to "
        f"{float(last[3]):.0f} s and diversity from {float(first[5]):.2f} to {float(last[5]):.2f}."
    )


def of_prepare(rows: Rows) -> str:
    """The dearer file form at each size, for each number by itself."""
    parts = []
    for size in dict.fromkeys(row[0] for row in rows):
        same = [row for row in rows if row[0] == size]
        seconds = max(float(row[2]) for row in same)
        memory = max(int(row[4].replace(",", "")) for row in same)
        parts.append(f"{size} rows take up to {seconds:.1f} processor seconds and {memory:,} MiB")
    return "; ".join(parts) + f" (up to {max(row[5] for row in rows)} times linear)."


def of_prepare_script(rows: Rows) -> str:
    """The script form against `prepare`, at each size."""
    lines = [row for row in rows if row[1].startswith("the public script")]
    sizes = " and ".join(row[0] for row in lines)
    times, memory = (span((float(row[place]) for row in lines), ".0f") for place in (5, 6))
    return (
        f"At {sizes} rows the public script's way takes {times} times the processor time and {memory} times the memory."
    )


def of_prepare_append(rows: Rows) -> str:
    """Every second row: appending."""
    work, clock = (", ".join(f"{float(row[at]):.0%} ({row[2]})" for row in rows[1::2]) for at in (7, 8))
    return (
        f"A day of {rows[0][1]} rows after {rows[0][0]} takes {work} of the processor time of preparing everything, and "
        f"{clock} of the time by the clock."
    )


def of_policy_ablation(rows: Rows, num_rows: int) -> str:
    """Which changes move HR@10 of the dense head by more than twice the standard error of a difference.

    The error is that of two independent shares of ``num_rows`` rows times the seeds, which is too large for lists of the
    same users, so that nothing is claimed too early.
    """
    compared = [(row[1], int(row[2]), float(row[5].split(" / ")[0])) for row in rows if row[0] == "small"]
    (_, seeds, base), changes = compared[0], compared[1:]
    moved = []
    for name, count, share in changes:
        error = sum(p * (1 - p) / (num_rows * n) for p, n in ((base, seeds), (share, count))) ** 0.5
        if abs(share - base) > 2 * error:
            moved.append(f"{name} ({share / base - 1:+.0%})")
    listed = f"only {', '.join(moved)} moves" if moved else "none moves"
    return (
        f"Of {len(changes)} changes, measured on {seeds} seed(s), {listed} HR@10 of the dense head by more than twice the "
        "standard error."
    )


GATE_FIGURES = (
    "equal",
    "restless",
    "hits lost",
    "ranks lost",
    "gain",
    "slice hits",
    "best difference",
    "likelihood ratio",
    "slice ranks",
    "behind a gain",
    "nights",
)
"""Columns of the gate's page from the fifth on."""


def of_gate(rows: Rows) -> str:
    """The rows of 10,000 users at spread 1."""
    found = [row for row in rows if (row[1], row[2]) == ("10,000", "1")]
    if not found:
        return "No row of 10,000 users at spread 1 was asked for."
    of = {name: [float(row[place]) for row in found] for place, name in enumerate(GATE_FIGURES, start=4)}
    hits = span((float(row[3]) for row in found), ".0f")
    return (
        f"At 10,000 rows and spread 1 equal models are refused in {span(of['equal'], '.1%')} of nights, "
        f"{span(of['restless'], '.1%')} where they differ far more on one slice, models 3 % worse pass in "
        f"{span([*of['hits lost'], *of['ranks lost']], '.1%')}, models 5 % better in {span(of['gain'], '.0%')}; a loss of "
        f"20 % on a slice of 5 % is refused in {span(of['slice ranks'], '.0%')} where it lowers ranks and in "
        f"{span(of['slice hits'], '.0%')} where {hits} hits lose a fifth; sixty nights "
        f"of 1 % losses stay within the budget in {span(of['nights'], '.1%')} of resamplings."
    )

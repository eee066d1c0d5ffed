"""The sentence on top of the pages, worked by hand for every case."""

from __future__ import annotations

import math

from recsys.evaluation.rankings import SERVED, UNALIGNED_SERVED
from recsys.evaluation.table import format_table, ranked_systems, verdict
from recsys.reports.alignment import alignment_conclusion
from recsys.reports.conclusion import evaluation_conclusion, standing_of
from tests.toy.reports import alignment_report, change, summary_of


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_better() -> None:
    """0.12 / 0.10 = 1.2, 20 % more; 3 x 0.12 = 36 of 100, 3 x 0.10 = 30; markov, at 0.05, is not the best baseline."""
    summary = summary_of(
        {SERVED: 0.12, "markov": 0.05, "ease": 0.10}, {"markov": (0.07, 0.05, 0.09), "ease": (0.02, 0.01, 0.03)}
    )
    found = evaluation_conclusion(summary)
    assert found.standing == "better"
    assert plain(found.sentence) == (
        "The model is better than the best baseline, ease: ndcg@10 is 0.1200 against 0.1000 (20 % more), a difference of "
        "+0.0200 that lies between +0.0100 and +0.0300 (95 % interval, paired on the same users)."
    )
    assert found.notes == (
        "Of 100 users, 36 find something they really took next among the first 10 items; with ease it is 30.",
    )


def test_a_baseline_that_is_ahead_by_hits_is_named() -> None:
    """NDCG cannot tell them apart, but markov finds something for more users, and its interval does not hold 0."""
    summary = summary_of({SERVED: 0.11, "markov": 0.10, "ease": 0.09}, {"markov": (0.01, -0.01, 0.03)})
    summary["comparisons"]["markov"]["filtered"]["hr@10"] = change(-0.02, -0.03, -0.01)
    assert "By hr@10, the model is clearly behind markov." in evaluation_conclusion(summary).notes
    summary["comparisons"]["markov"]["filtered"]["hr@10"] = change(-0.02, -0.05, 0.01)
    assert not any("clearly behind" in note for note in evaluation_conclusion(summary).notes)


def test_worse() -> None:
    """0.08 / 0.10 = 0.8, 20 % less."""
    found = evaluation_conclusion(summary_of({SERVED: 0.08, "ease": 0.10}, {"ease": (-0.02, -0.03, -0.01)}))
    assert found.standing == "worse"
    assert plain(found.sentence) == (
        "The model is worse than the best baseline, ease: ndcg@10 is 0.0800 against 0.1000 (20 % less), a difference of "
        "−0.0200 that lies between −0.0300 and −0.0100 (95 % interval, paired on the same users)."
    )


def test_cannot_be_told_apart() -> None:
    """The mean is higher, yet the interval holds 0: no "more" is claimed."""
    found = evaluation_conclusion(summary_of({SERVED: 0.11, "ease": 0.10}, {"ease": (0.01, -0.01, 0.03)}))
    assert found.standing == "equal"
    assert plain(found.sentence) == (
        "The model cannot be told apart from the best baseline, ease: ndcg@10 is 0.1100 against 0.1000, and the true "
        "difference may be anything between −0.0100 and +0.0300 (95 % interval, paired on the same users)."
    )


def test_the_beam_and_the_policy_before_alignment_are_no_baselines() -> None:
    means = {SERVED: 0.12, "generative (beam)": 0.3, UNALIGNED_SERVED: 0.11}
    found = evaluation_conclusion(summary_of(means, {name: (0.0, -0.1, 0.1) for name in means if name != SERVED}))
    assert found.standing == "unknown"
    assert found.sentence == (
        "No baseline was ranked on these rows, so whether the model is any good cannot be said: its ndcg@10 is 0.1200 with "
        "seen items filtered."
    )
    with_baseline = summary_of(
        {**means, "ease": 0.1}, {UNALIGNED_SERVED: (0.01, 0.005, 0.015), "ease": (0.02, 0.01, 0.03)}
    )
    assert evaluation_conclusion(with_baseline).notes[-1] == (
        "Against the same list before alignment, ndcg@10 rose (+0.0100 [+0.0050, +0.0150])."
    )


def test_no_reference() -> None:
    found = evaluation_conclusion(summary_of({"ease": 0.1, "markov": 0.2}, {}, reference=None))
    assert found.sentence == (
        "No system was named as the reference, so nothing was compared; markov has the highest ndcg@10, 0.2000."
    )


def test_another_reference_is_called_by_its_name() -> None:
    summary = summary_of({"markov": 0.1, "ease": 0.1}, {"ease": (0.0, -0.1, 0.1)}, reference="markov")
    assert evaluation_conclusion(summary).sentence.startswith(
        "The reference system, markov, cannot be told apart from the best baseline, ease:"
    )


def test_the_other_filter_is_a_note_with_its_own_best_baseline() -> None:
    summary = summary_of(
        {SERVED: 0.12, "ease": 0.10, "markov": 0.05},
        {"ease": (0.02, 0.01, 0.03), "markov": (0.07, 0.05, 0.09)},
        filters=("filtered", "unfiltered"),
    )
    summary["systems"]["markov"]["unfiltered"]["ndcg@10"]["mean"] = 0.13
    summary["comparisons"]["markov"]["unfiltered"]["ndcg@10"] = {"difference": -0.01, "low": -0.02, "high": -0.005}
    found = evaluation_conclusion(summary)
    assert found.standing == "better"
    assert found.notes[1].startswith(
        "With seen items kept, the model is worse than the best baseline, markov: ndcg@10 is 0.1200 against 0.1300"
    )


def test_numbers_that_were_not_measured() -> None:
    """A baseline without a mean is not the best one; an interval of NaN is neither better nor worse nor equal."""
    nan = math.nan
    summary = summary_of({SERVED: 0.12, "ease": 0.10, "markov": None, "popularity": nan}, {"ease": (nan, nan, nan)})
    found = evaluation_conclusion(summary)
    assert (found.standing, found.sentence) == (
        "unknown",
        "The model cannot be compared with the best baseline, ease: there is no interval for the difference in ndcg@10.",
    )
    assert ranked_systems(summary) == [SERVED, "ease", "markov", "popularity"]
    assert verdict({"low": nan, "high": nan}) == "unknown"
    assert "markov                 – [–, –]" in format_table(summary)


def test_alignment_is_measured_by_the_reward_model_it_never_saw() -> None:
    found = alignment_conclusion(
        alignment_report({"held_out_reward": change(0.5, 0.2, 0.8), "beam_hr@1": change(-0.1, -0.2, -0.05)})
    )
    assert found.standing == "better"
    assert plain(found.sentence) == (
        "The aligned policy (round 1 of 1) is better than the start by a reward model that alignment never trained on: a "
        "difference of +0.5000 deviations of the start, between +0.2000 and +0.8000 (95 % interval, paired on the same "
        "validation rows)."
    )
    assert found.notes == (
        "Elsewhere: beam_hr@1 fell (−0.1000 [−0.2000, −0.0500]).",
        "The guard found nothing that speaks against it.",
    )


def test_alignment_without_a_reward_model_is_measured_by_hits() -> None:
    worse = alignment_conclusion(alignment_report({"beam_hr@1": change(-0.1, -0.2, -0.05)}, broken=("it fell",)))
    assert worse.standing == "worse"
    assert "is worse than the start by the hit rate of the first place" in worse.sentence
    assert worse.notes == ("The guard objects: it fell.",)
    assert alignment_conclusion(alignment_report({"beam_hr@1": change(0.1, -0.2, 0.4)})).standing == "equal"
    assert alignment_conclusion(alignment_report({"beam_hr@1": change(0.1, math.nan, 0.4)})).standing == "unknown"


def test_alignment_that_kept_the_start_says_why() -> None:
    report = alignment_report({}, kept=0, broken=("beam_recall@10 fell by 0.1",), stopped="2 back-offs")
    found = alignment_conclusion(report)
    assert found.sentence == (
        "Alignment changed nothing, none of 1 rounds was kept: the guard found that beam_recall@10 fell by 0.1."
    )
    assert found.notes == ("Stopped after 2 back-offs.",)


def test_standing_of() -> None:
    assert [standing_of(change(0.0, *bounds)) for bounds in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1))] == [
        "better",
        "worse",
        "equal",
        "equal",
    ]


def test_an_interval_that_ends_at_0_decides_nothing() -> None:
    assert standing_of(change(0.0, -0.1, 0.0)) == "equal"


def test_a_baseline_that_never_hits_has_no_share() -> None:
    """0.12 against 0: "better", but no number of percent."""
    found = evaluation_conclusion(summary_of({SERVED: 0.12, "ease": 0.0}, {"ease": (0.12, 0.1, 0.14)}))
    assert "is 0.1200 against 0.0000, a difference of +0.1200 that lies" in found.sentence


def test_hits_are_counted_in_rows_where_users_have_several_and_only_if_measured() -> None:
    summary = summary_of({SERVED: 0.12, "ease": 0.10}, {"ease": (0.02, 0.01, 0.03)}) | {"confidence": 0.9}
    summary["rows"] = 2 * summary["users"]
    found = evaluation_conclusion(summary)
    assert found.notes[0].startswith("Of 100 rows, 36 find something")
    assert "(90 % interval, paired on the same users)" in plain(found.sentence)
    summary["systems"]["ease"]["filtered"]["hr@10"]["mean"] = None
    assert evaluation_conclusion(summary).notes == ()
    summary["headline"] = ["ndcg@10"]
    assert evaluation_conclusion(summary).notes == ()


def test_the_reference_is_not_its_own_baseline() -> None:
    """markov is the reference and has the highest mean; the best of the others is ease."""
    summary = summary_of({"markov": 0.2, "ease": 0.1}, {"ease": (0.1, 0.05, 0.15)}, reference="markov")
    assert "markov, is better than the best baseline, ease: " in evaluation_conclusion(summary).sentence

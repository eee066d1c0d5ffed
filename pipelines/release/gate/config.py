"""Configuration of the gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys.config import FrozenConfig


class PromoteConfig(FrozenConfig):
    """When a challenger replaces the champion. Losses and margins are shares of the reference's mean on the same rows.

    Attributes:
        metric: Metric of the served ranking with seen items filtered, for example ``ndcg@10``.
        rule: ``not_worse`` asks that a loss of ``margin`` is ruled out; ``better`` asks for a proven gain (the whole
            interval above zero).
        margin: Loss against the champion that ``not_worse`` has to rule out.
        margin_risk: Chance of passing a challenger whose loss is exactly ``margin``, whatever the number of rows: too few
            refuse more, and never pass more.
        budget: Loss against the anchor, the best champion so far, that all nights together may reach.
        budget_risk: Chance of one night to pass a challenger that uses up exactly the budget.
        slice_margin: Loss on one slice that is borne, because a significant loss need not be worth a refusal.
        slice_risk: Chance, over all slices together, to refuse a challenger that loses exactly ``slice_margin`` on each. One
            that loses nothing is refused in about one night of a hundred for that.
        min_slice_rows: Slices of fewer rows are not compared.
        segments: So many of the largest categories of the wanted items are slices too.
        floor: ``baselines`` refuses a challenger that is proven worse than the best baseline of its evaluation, unless it is
            better than a champion that is below that baseline too; ``popularity`` looks at that baseline alone. A first
            version has to have a higher mean than popularity. ``none`` lets everything through.
        floor_risk: Chance of refusing a challenger that is as good as the best baseline.
        max_coverage_loss: Share of the champion's catalogue coverage that may be lost; ``None`` does not look.
        probe_rows: Rows that both bundles answer on this machine for the next two; 0 does not look.
        max_shortfall_rise: By how much the share of lists with fewer items than asked may rise.
        max_latency_ratio: By how many times a row may take longer; ``None`` does not look.
        confidence: Of the two-sided interval that is shown, and that ``better`` asks about.
        on_refusal: What `run` does: ``report`` says so and serves the champion, ``fail`` ends with exit code 5. The verb
            `promote` always ends with 5, and so does a run whose first version is refused.
    """

    metric: str = Field(default="ndcg@10", pattern=r"^(hr|recall|ndcg|mrr)@\d+$")
    rule: Literal["not_worse", "better"] = "not_worse"
    margin: float = Field(default=0.03, gt=0, le=1)
    margin_risk: float = Field(default=0.07, gt=0, lt=0.5)
    budget: float = Field(default=0.05, gt=0, le=1)
    budget_risk: float = Field(default=0.01, gt=0, lt=0.5)
    slice_margin: float = Field(default=0.02, ge=0, le=1)
    slice_risk: float = Field(default=0.3, gt=0, lt=0.5)
    min_slice_rows: int = Field(default=100, ge=2)
    segments: int = Field(default=4, ge=0)
    floor: Literal["baselines", "popularity", "none"] = "baselines"
    floor_risk: float = Field(default=0.02, gt=0, lt=0.5)
    max_coverage_loss: float | None = Field(default=0.3, ge=0, le=1)
    probe_rows: int = Field(default=200, ge=0)
    max_shortfall_rise: float = Field(default=0.01, ge=0, le=1)
    max_latency_ratio: float | None = Field(default=None, gt=0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    on_refusal: Literal["report", "fail"] = "report"

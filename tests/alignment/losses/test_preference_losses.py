"""Preference losses by hand, and the identities between them. The suite over all types is in tests/contracts."""

import math

import pytest
import torch
from pydantic import ValidationError

from recsys.alignment.losses.config import PreferenceLossConfig
from recsys.alignment.losses.curriculum import curriculum_weights, pair_gap
from recsys.alignment.losses.preference import PreferenceLogProbs, preference_loss
from recsys.config import validate
from recsys.contracts.errors import ConfigError, DataError


def one_pair(**changes: torch.Tensor) -> PreferenceLogProbs:
    """d_w = -2 + 2.5 = 0.5 and d_l = -3 + 2.5 = -0.5, so the margin is 1; lengths 2 and 3; rewards log 2 and 0."""
    values = {
        "chosen": torch.tensor([-2.0]),
        "rejected": torch.tensor([[-3.0]]),
        "ref_chosen": torch.tensor([-2.5]),
        "ref_rejected": torch.tensor([[-2.5]]),
        "chosen_length": torch.tensor([2]),
        "rejected_length": torch.tensor([[3]]),
        "chosen_reward": torch.tensor([math.log(2)]),
        "rejected_reward": torch.tensor([[0.0]]),
    }
    return PreferenceLogProbs(**{**values, **changes})


def loss_of(loss_type: str, pairs: PreferenceLogProbs, **options: float) -> float:
    return preference_loss(PreferenceLossConfig(loss_type=loss_type, **options), pairs).loss.item()


@pytest.mark.parametrize(
    ("loss_type", "options", "expected"),
    [
        ("dpo", {}, 0.474077),
        ("ipo", {"beta": 0.25}, 1.0),
        ("cdpo", {"label_smoothing": 0.1}, 0.524077),
        ("rdpo", {"label_smoothing": 0.1}, 0.411577),
        ("cpo", {"cpo_alpha": 2.0}, 4.474077),
        ("simpo", {"simpo_gamma": 0.5}, 0.974077),
        ("sdpo", {}, 0.474077),
        ("plackett_luce", {}, 0.474077),
        ("listwise", {}, 0.640744),
    ],
)
def test_one_pair_by_hand(loss_type: str, options: dict[str, float], expected: float) -> None:
    """beta = 0.5 gives h = 0.5; a = -log sigmoid(0.5) = log(1 + e^-0.5) = 0.474077, -log sigmoid(-0.5) = a + 0.5.

    ipo, beta 0.25: (1 - 1 / 0.5)^2 = 1.  cdpo: 0.9 a + 0.1 (a + 0.5) = a + 0.05.
    rdpo: (0.9 a - 0.1 (a + 0.5)) / 0.8 = a - 0.0625.  cpo: margin -2 + 3 = 1 as well, a + 2 * 2.
    simpo: means -2 / 2 and -3 / 3 are equal, so -log sigmoid(0 - 0.5).
    listwise: wanted 2/3 and 1/3 (rewards log 2 and 0), held sigmoid(0.5) and the rest: 2/3 a + 1/3 (a + 0.5) = a + 1/6.
    """
    assert loss_of(loss_type, one_pair(), **{"beta": 0.5, **options}) == pytest.approx(expected, abs=1e-5)


def three_candidates() -> PreferenceLogProbs:
    """Log-ratios 0.5, -0.5, 0 in the order of falling reward."""
    rejected = torch.tensor([[-3.0, -4.0]])
    return one_pair(
        rejected=rejected,
        ref_rejected=rejected - torch.tensor([[-0.5, 0.0]]),
        rejected_length=torch.tensor([[3, 3]]),
        chosen_reward=torch.tensor([3.0]),
        rejected_reward=torch.tensor([[2.0, 1.0]]),
    )


def test_several_negatives_by_hand() -> None:
    """beta 0.5. Pairwise: margins 1 and 0.5, mean of log(1 + e^-0.5) = 0.474077 and log(1 + e^-0.25) = 0.575940.

    sdpo: log(1 + e^-0.5 + e^-0.25) = log 2.385332 = 0.869338. Plackett-Luce: first place the same, second place
    log(1 + e^0.25) = 0.825940, mean 0.847639.
    """
    pairs = three_candidates()
    assert loss_of("dpo", pairs, beta=0.5) == pytest.approx((0.474077 + 0.575940) / 2, abs=1e-5)
    assert loss_of("sdpo", pairs, beta=0.5) == pytest.approx(0.869338, abs=1e-5)
    assert loss_of("plackett_luce", pairs, beta=0.5) == pytest.approx(0.847639, abs=1e-5)


def test_metrics_by_hand() -> None:
    """Margins 1 and 0.5 of the row above, and one of -2 in a second row with one negative: mean -1/6, two of three right."""
    both = PreferenceLogProbs(
        chosen=torch.tensor([-2.0, -5.0]),
        rejected=torch.tensor([[-3.0, -4.0], [-3.0, -torch.inf]]),
        ref_chosen=torch.tensor([-2.5, -4.0]),
        ref_rejected=torch.tensor([[-2.5, -4.0], [-4.0, torch.nan]]),
        rejected_mask=torch.tensor([[True, True], [True, False]]),
    )
    result = preference_loss(PreferenceLossConfig(), both)
    assert result.margin.item() == pytest.approx(-0.5 / 3)
    assert result.accuracy.item() == pytest.approx(2 / 3)
    assert result.chosen_log_ratio.item() == pytest.approx((0.5 - 1.0) / 2)
    assert result.rejected_log_ratio.item() == pytest.approx((-0.5 + 0.0 + 1.0) / 3)


def test_loss_at_the_reference_is_log_two() -> None:
    logs, rejected = torch.tensor([-3.0, -1.0]), torch.tensor([[-5.0], [-0.5]])
    pairs = PreferenceLogProbs(logs, rejected, ref_chosen=logs, ref_rejected=rejected)
    for beta in (0.01, 0.1, 2.0):
        assert loss_of("dpo", pairs, beta=beta) == pytest.approx(math.log(2), abs=1e-6)


def test_ipo_is_least_at_a_margin_of_half_over_beta() -> None:
    """beta = 0.2: the minimum, 0, lies at 1 / 0.4 = 2.5, and 0.1 to either side the loss is 0.01."""
    margins = torch.tensor([2.4, 2.5, 2.6])
    losses = [
        loss_of("ipo", one_pair(chosen=torch.tensor([-2.5 + m]), rejected=torch.tensor([[-2.5]])), beta=0.2)
        for m in margins.tolist()
    ]
    assert losses == pytest.approx([0.01, 0.0, 0.01], abs=1e-5)


def test_smoothed_losses_approach_dpo_and_rdpo_is_unbiased() -> None:
    """Flip a pair with probability e: the expected rdpo loss is dpo's on the clean pair."""
    straight = one_pair()
    flipped = one_pair(
        chosen=straight.rejected[:, 0],
        rejected=straight.chosen[:, None],
        ref_chosen=straight.ref_rejected[:, 0],
        ref_rejected=straight.ref_chosen[:, None],
    )
    smoothing = 0.3
    expected = (1 - smoothing) * loss_of("rdpo", straight, label_smoothing=smoothing) + smoothing * loss_of(
        "rdpo", flipped, label_smoothing=smoothing
    )
    assert expected == pytest.approx(loss_of("dpo", straight), abs=1e-6)
    for loss_type in ("cdpo", "rdpo"):
        assert loss_of(loss_type, straight, label_smoothing=1e-6) == pytest.approx(loss_of("dpo", straight), abs=1e-5)


def random_pairs(rows: int = 6, negatives: int = 1, seed: int = 0) -> PreferenceLogProbs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return -6 * torch.rand(*shape, generator=generator)

    return PreferenceLogProbs(
        chosen=draw(rows),
        rejected=draw(rows, negatives),
        ref_chosen=draw(rows),
        ref_rejected=draw(rows, negatives),
        chosen_reward=1 + draw(rows).abs() + 6,
        rejected_reward=draw(rows, negatives),
    )


@pytest.mark.parametrize("loss_type", ["sdpo", "plackett_luce"])
def test_one_negative_equals_dpo(loss_type: str) -> None:
    pairs = random_pairs(negatives=1)
    ours = preference_loss(PreferenceLossConfig(loss_type=loss_type, beta=0.7), pairs).per_row
    torch.testing.assert_close(ours, preference_loss(PreferenceLossConfig(beta=0.7), pairs).per_row)


def test_plackett_luce_is_the_product_of_softmaxes() -> None:
    """Against the definition written as a loop: draw without replacement in the order of reward."""
    pairs = random_pairs(rows=5, negatives=6)
    logits = 0.4 * torch.cat([pairs.chosen_log_ratio[:, None], pairs.rejected_log_ratio], 1)
    rewards = torch.cat([pairs.chosen_reward[:, None], pairs.rejected_reward], 1)
    expected = []
    for row in range(5):
        left = logits[row][rewards[row].argsort(descending=True)]
        places = [-left[place:].log_softmax(0)[0] for place in range(len(left) - 1)]
        expected.append(torch.stack(places).mean())
    ours = preference_loss(PreferenceLossConfig(loss_type="plackett_luce", beta=0.4), pairs).per_row
    torch.testing.assert_close(ours, torch.stack(expected))


def test_equal_rewards_give_plackett_luce_nothing_to_learn() -> None:
    rejected = torch.tensor([[-3.0, -4.0, -1.0]], requires_grad=True)
    pairs = PreferenceLogProbs(
        chosen=torch.tensor([-2.0]),
        rejected=rejected,
        ref_chosen=torch.zeros(1),
        ref_rejected=torch.zeros(1, 3),
        chosen_reward=torch.ones(1),
        rejected_reward=torch.ones(1, 3),
    )
    loss = preference_loss(PreferenceLossConfig(loss_type="plackett_luce"), pairs).loss
    loss.backward()
    assert loss.item() == 0
    assert rejected.grad.abs().max().item() == 0


def test_plackett_luce_of_ties_does_not_depend_on_their_order() -> None:
    pairs = random_pairs(rows=3, negatives=4)
    rewards = torch.tensor([[2.0, 1.0, 1.0, 0.0]]).expand(3, -1)
    order = torch.tensor([0, 2, 1, 3])
    tied = [
        PreferenceLogProbs(
            pairs.chosen,
            pairs.rejected[:, places],
            pairs.ref_chosen,
            pairs.ref_rejected[:, places],
            chosen_reward=torch.full((3,), 3.0),
            rejected_reward=rewards[:, places],
        )
        for places in (torch.arange(4), order)
    ]
    first, second = (preference_loss(PreferenceLossConfig(loss_type="plackett_luce"), pair).per_row for pair in tied)
    torch.testing.assert_close(first, second)


def test_listwise_is_least_where_log_ratios_follow_rewards() -> None:
    """softmax(beta d) = softmax(reward / t) makes the cross-entropy the entropy of the target, and the gradient 0."""
    rewards, beta, temperature = torch.tensor([[2.0, 1.0, -1.0]]), 0.5, 2.0
    ratios = (rewards / (temperature * beta)).requires_grad_()
    pairs = PreferenceLogProbs(
        chosen=ratios[:, 0],
        rejected=ratios[:, 1:],
        ref_chosen=torch.zeros(1),
        ref_rejected=torch.zeros(1, 2),
        chosen_reward=rewards[:, 0],
        rejected_reward=rewards[:, 1:],
    )
    loss = preference_loss(PreferenceLossConfig(loss_type="listwise", beta=beta, temperature=temperature), pairs).loss
    target = (rewards / temperature).softmax(-1)
    assert loss.item() == pytest.approx(-(target * target.log()).sum().item(), abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, ratios)
    assert gradient.abs().max().item() < 1e-7


def test_curriculum_by_hand() -> None:
    """Ten pairs, gaps 0.1 to 1.0, 30 % at the start: three pairs, then 0.3 + 0.7 * 3/7 = 0.6, then all."""
    gaps = torch.arange(1, 11) / 10
    for progress, count in ((0.0, 3), (3 / 7, 6), (1.0, 10)):
        weights = curriculum_weights(gaps, progress - 1e-9 if progress == 3 / 7 else progress)
        assert weights.sum().item() == count
        assert weights.tolist() == sorted(weights.tolist())  # the widest gaps, at the end of the list, come first


def test_curriculum_ramp_is_monotone_in_progress_and_ends_at_one() -> None:
    gaps = torch.randn(50, generator=torch.Generator().manual_seed(0))
    steps = torch.stack([curriculum_weights(gaps, progress / 10, softness=0.3) for progress in range(11)])
    assert (steps.diff(dim=0) >= 0).all()
    assert ((steps > 0) & (steps < 1)).any()
    assert steps[-1].min().item() == 1.0
    equal = curriculum_weights(torch.ones(7), 0.0, start_share=0.1)
    assert equal.tolist() == [1.0] * 7  # equal pairs share a place: none is harder than another


def test_pair_gap_is_to_the_strongest_negative() -> None:
    """Rewards 3 against 2 and 1: gap 1. Reference -2.5 against -2.5 and -4: gap 0. A masked negative does not count."""
    pairs = three_candidates()
    assert pair_gap(pairs, "reward").tolist() == [1.0]
    assert pair_gap(pairs, "reference").tolist() == [0.0]
    masked = PreferenceLogProbs(
        pairs.chosen,
        pairs.rejected,
        rejected_mask=torch.tensor([[False, True]]),
        chosen_reward=pairs.chosen_reward,
        rejected_reward=pairs.rejected_reward,
    )
    assert pair_gap(masked, "reward").tolist() == [2.0]
    with pytest.raises(ConfigError, match="curriculum by 'reference' needs the reference"):
        pair_gap(masked, "reference")
    with pytest.raises(ConfigError, match=r"progress 1\.5"):
        curriculum_weights(torch.ones(2), 1.5)


def test_config_refusals() -> None:
    with pytest.raises(ConfigError, match="'dpo', 'ipo'"):
        validate(PreferenceLossConfig, {"loss_type": "dop"}, "test")
    with pytest.raises(ValidationError, match=r"'dpo' does not read label_smoothing .*choose one of cdpo, rdpo"):
        PreferenceLossConfig(loss_type="dpo", label_smoothing=0.2)
    with pytest.raises(ValidationError, match="'sdpo' does not read simpo_gamma"):
        PreferenceLossConfig(loss_type="sdpo", simpo_gamma=1.0)
    with pytest.raises(ValidationError, match=r"less than 0\.5"):
        PreferenceLossConfig(loss_type="rdpo", label_smoothing=0.5)
    written = PreferenceLossConfig(loss_type="rdpo", label_smoothing=0.2).model_dump()
    assert PreferenceLossConfig(**written).label_smoothing == 0.2


def test_data_refusals() -> None:
    nothing = PreferenceLogProbs(torch.zeros(2), torch.zeros(2, 0), torch.zeros(2), torch.zeros(2, 0))
    with pytest.raises(DataError, match="'sdpo': row 0 of 2 has no rejected session"):
        preference_loss(PreferenceLossConfig(loss_type="sdpo"), nothing)
    masked = one_pair(rejected_mask=torch.tensor([[False]]))
    with pytest.raises(DataError, match="row 0 of 1 has no rejected"):
        preference_loss(PreferenceLossConfig(), masked)
    with pytest.raises(DataError, match=r"ref_rejected has shape \(1,\), expected \(1, 1\)"):
        one_pair(ref_rejected=torch.zeros(1))
    with pytest.raises(DataError, match="NaN or infinite"):
        preference_loss(PreferenceLossConfig(), one_pair(rejected=torch.tensor([[-torch.inf]])))

"""A next-token loss that keeps the targets' prefixes in the beam: the anchor beside a policy gradient.

A beam that has lost a prefix never finds what lies below. The ordinary loss adds up codes, so the last code counts as much
as the first; here each prefix is a loss of its own, so that early codes are in more of them, and the worst prefix counts
most.

Source: APAO (arXiv 2603.02730), the pointwise form as in its public code: the loss of the first l codes is minus their mean
log-probability, and prefixes are weighted in proportion to ``loss exp(eta loss)``, without a gradient through the weights.
The whole item is a prefix too, as it is there before an end token.

Legend: N targets, L levels.
"""

from __future__ import annotations

import torch

from recsys.contracts.errors import DataError


def prefix_anchor(code_losses_NL: torch.Tensor, eta: float = 0.0) -> torch.Tensor:
    """Weigh the losses of all prefixes, mean over targets.

    Args:
        code_losses_NL: Minus the log-probability of each code.
        eta: How much more the prefix with the largest loss counts.

    Raises:
        DataError: There is no target.

    Example:
        Codes cost 1 and 3 nats: the prefixes 1 and (1 + 3) / 2 = 2; weights 1/3 and 2/3, so 1/3 + 4/3.

        >>> round(prefix_anchor(torch.tensor([[1.0, 3.0]])).item(), 4)
        1.6667
    """
    if not len(code_losses_NL):
        raise DataError("prefix anchor: there is no target; leave such a batch out")
    lengths_L = torch.arange(1, code_losses_NL.shape[1] + 1, device=code_losses_NL.device)
    prefix_L = (code_losses_NL.cumsum(1) / lengths_L).mean(0)
    now_L = prefix_L.detach()
    # log form of loss * exp(eta * loss), normalised: a large eta cannot overflow
    weight_L = (now_L.clamp(min=torch.finfo(now_L.dtype).tiny).log() + eta * now_L).softmax(0)
    return (weight_L * prefix_L).sum()

"""Sparse mixture of experts in place of the decoder's feed-forward layer.

Legend: N tokens, E experts, J = top-k experts per token, R = N * J rows, D width, F hidden width of an expert.

Source: OneRec (arXiv 2502.18965) eq. 2; loss-free balancing as in OneRec's technical report (2506.13695, section 4.2.1)
and DeepSeek-V3. Departures: experts are SwiGLU (technical report, section 2.3), and the balancing bias is optional.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from recsys.model.config import ModelConfig
from recsys.model.layers.attention import FeedForward, gated
from recsys.model.layers.precision import float32_linear
from recsys.model.layers.rows import decodes_on_cpu, product


class MixtureOfExperts(nn.Module):
    """Send every token to its J best experts; no token is ever dropped.

    1. score every expert for every token, softmax in float32;
    2. pick J experts by score plus balancing bias; gate by the score alone;
    3. sort the R (token, expert) pairs by expert, so that each expert's tokens are one segment;
    4. two grouped matrix products run all segments;
    5. add the gated results back to their tokens.

    Attributes:
        bias_E: Balancing bias, used for selection only; no gradient (buffer, float32, saved in checkpoints).
        last_load_E: Tokens sent to each expert by the last forward pass in training, int64. A pass puts its own counts here
            and adds to nothing, so that one that activation checkpointing repeats counts once.
        load_E: What :meth:`note_load` added up since the last :meth:`update_balance`.
    """

    bias_E: torch.Tensor
    last_load_E: torch.Tensor
    load_E: torch.Tensor
    expert_numbers_E: torch.Tensor

    def __init__(
        self,
        width: int,
        num_experts: int,
        hidden: int,
        top_k: int,
        *,
        renormalise: bool = False,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.renormalise = num_experts, top_k, renormalise
        self.centroids_ED = nn.Parameter(torch.empty(num_experts, width).normal_(std=init_std))
        self.up_EDF = nn.Parameter(torch.empty(num_experts, width, 2 * hidden).normal_(std=init_std))
        self.down_EFD = nn.Parameter(torch.empty(num_experts, hidden, width).normal_(std=init_std))
        self.register_buffer("bias_E", torch.zeros(num_experts))
        self.register_buffer("last_load_E", torch.zeros(num_experts, dtype=torch.int64), persistent=False)
        self.register_buffer("load_E", torch.zeros(num_experts), persistent=False)
        self.register_buffer("expert_numbers_E", torch.arange(num_experts), persistent=False)

    def route(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(gates [N, J], experts [N, J])``; gates are softmax scores, never the bias."""
        scores_NE = float32_linear(x_ND, self.centroids_ED).softmax(-1)  # a router saturates in bfloat16
        experts_NJ = (scores_NE + self.bias_E).topk(self.top_k, dim=-1).indices
        gates_NJ = scores_NE.gather(-1, experts_NJ)
        if self.renormalise:
            gates_NJ = gates_NJ / gates_NJ.sum(-1, keepdim=True)
        return gates_NJ, experts_NJ

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to tokens of any leading shape, ``[..., D] -> [..., D]``; the caller adds the residual."""
        x_ND = x.reshape(-1, x.shape[-1])
        gates_NJ, experts_NJ = self.route(x_ND)
        expert_sorted, order = experts_NJ.flatten().sort(stable=True)
        # ends of the segments by binary search: counting them would read a value back from a GPU
        ends_E = torch.searchsorted(expert_sorted, self.expert_numbers_E, right=True)
        if self.training:
            self.last_load_E = ends_E.diff(prepend=ends_E.new_zeros(1))
        if self._products_wait(x_ND):
            return self._every_expert(x_ND, gates_NJ, experts_NJ).view(x.shape)
        token = order // self.top_k
        mixed = self._experts(x_ND.index_select(0, token), ends_E.to(torch.int32))
        gate = gates_NJ.flatten()[order, None].to(mixed.dtype)
        weighted = mixed * gate if torch.is_grad_enabled() else mixed.mul_(gate)
        return torch.zeros_like(x_ND).index_add(0, token, weighted.to(x_ND.dtype)).view(x.shape)

    def _experts(self, rows_RD: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        """Run every expert on its segment of R = N * J rows, ``[R, D] -> [R, D]``.

        Mixed precision does not reach grouped products, so they are cast here. On a GPU bfloat16 runs as one kernel per
        product.
        """
        dtype = _autocast_dtype(rows_RD)
        rows_RD, up_EDF, down_EFD = rows_RD.to(dtype), self.up_EDF.to(dtype), self.down_EFD.to(dtype)
        if decodes_on_cpu(rows_RD):
            return _expert_by_expert(rows_RD, ends_E, up_EDF, down_EFD)
        return F.grouped_mm(gated(F.grouped_mm(rows_RD, up_EDF, offs=ends_E)), down_EFD, offs=ends_E)

    def _products_wait(self, x_ND: torch.Tensor) -> bool:
        """Whether torch would read the experts' counts back: on a GPU its float32 grouped product loops over them."""
        return x_ND.is_cuda and _autocast_dtype(x_ND) == torch.float32

    def _every_expert(self, x_ND: torch.Tensor, gates_NJ: torch.Tensor, experts_NJ: torch.Tensor) -> torch.Tensor:
        """The same result from every expert on every token, gated by 0 where it was not chosen.

        E / J times the arithmetic, and nothing is read back; many experts want bfloat16, where only the chosen ones run.
        """
        gates_NE = torch.zeros(len(x_ND), self.num_experts, dtype=x_ND.dtype, device=x_ND.device)
        gates_NE = gates_NE.scatter(1, experts_NJ, gates_NJ.to(x_ND.dtype))
        result = torch.zeros_like(x_ND)
        for expert in range(self.num_experts):
            mixed_ND = gated(x_ND @ self.up_EDF[expert]) @ self.down_EFD[expert]
            result = result + gates_NE[:, expert, None] * mixed_ND
        return result

    @torch.no_grad()
    def note_load(self) -> None:
        """Add the last pass's counts to those of its optimiser step."""
        self.load_E += self.last_load_E

    @torch.no_grad()
    def update_balance(self, rate: float) -> torch.Tensor:
        """Move the bias of overloaded experts down and of underloaded ones up by ``rate``; reset the counts.

        With several processes the counts are summed over all of them first, so that every replica keeps one bias.

        Returns:
            Share of tokens per expert since the last call, ``[E]``.
        """
        load_E = self.load_E.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(load_E)
        self.load_E.zero_()
        self.bias_E -= rate * torch.sign(load_E - load_E.mean())
        return load_E / load_E.sum().clamp(min=1)


def _autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """What a product of ``x`` is computed in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _expert_by_expert(
    rows_RD: torch.Tensor, ends_E: torch.Tensor, up_EDF: torch.Tensor, down_EFD: torch.Tensor
) -> torch.Tensor:
    """The grouped products one after the other, each row the same however few its expert has.

    How few follows from a user's company. What one expert makes of its rows stays in the cache for its second product.
    """
    mixed_RD, start = torch.empty_like(rows_RD), 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            inner = gated(product(rows_RD[start:end], up_EDF[expert]))
            product(inner, down_EFD[expert], out=mixed_RD[start:end])
            start = end
    return mixed_RD


def feed_forward(config: ModelConfig) -> nn.Module:
    """The decoder's feed-forward layer: a mixture of experts, or with one expert the plain layer, which needs no router."""
    if config.num_experts == 1:
        return FeedForward(config.width, config.expert_width)
    return MixtureOfExperts(
        config.width,
        config.num_experts,
        config.expert_width,
        config.experts_per_token,
        renormalise=config.renormalise_gates,
        init_std=config.init_std,
    )


def dense_reference(moe: MixtureOfExperts, x_ND: torch.Tensor) -> torch.Tensor:
    """Compute the same result by running every expert on every token; the oracle of the tests."""
    gates_NJ, experts_NJ = moe.route(x_ND)
    weights_NE = torch.zeros(len(x_ND), moe.num_experts, dtype=gates_NJ.dtype).scatter(1, experts_NJ, gates_NJ)
    gate, value = torch.einsum("nd,edf->nef", x_ND, moe.up_EDF).chunk(2, dim=-1)
    outputs_NED = torch.einsum("nef,efd->ned", F.silu(gate) * value, moe.down_EFD)
    return (weights_NE[..., None] * outputs_NED).sum(1)

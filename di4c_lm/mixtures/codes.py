"""λ as latent codes behind all attention, one a window of positions, tied in a Markov chain along the sequence.

What is said of a position depends on x_t and on the code of its own window alone, so L runs of the last MLP say all there is to say about
L^W sequences of codes; averaged over λ the positions are a hidden Markov model, whose marginals and likelihood are exact. A mixture of L
products holds at most log L nats of mutual information between the sequence and λ; a chain of W windows up to W log L.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import at_least, check, positive, section, setting
from di4c_lm.mixtures.base import Chain, Chained, CodedMixture, Latents, MixtureSettings, code_uniforms
from di4c_lm.networks.base import Network, Rows
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import widest

_LEAST = 1e-300  # below it a path is lost to float64; it keeps the logarithm of a path that cannot be finite
_OUTPUT_STD = 0.1  # of what is added to the output for pixels before training, where init_scale=1
_MOST = 4.0  # that is added there, so that no scale vanishes


@section
class CodesSettings(MixtureSettings):
    """One latent code per window of positions, the codes tied in a chain; they enter behind the last attention."""

    codebook_size: int = setting(0, "number of codes; 0: as many as objective.num_lambdas")
    init_scale: float = setting(
        0.02, "initial standard deviation of the codes' effect, divided by the square root of the width"
    )
    window: int = setting(0, "positions that share a code; 0: all positions of a sequence")
    ties: Literal["chain", "none"] = setting(
        "chain", "chain: a window's code depends on that of the window before; none: codes are independent"
    )
    weights: Literal["context", "uniform"] = setting(
        "context", "context: the codes' distribution is predicted from x_t; uniform: all codes are equally likely"
    )
    freeze_backbone: bool = setting(False, "keep the teacher's weights and train λ's alone")

    def __post_init__(self) -> None:
        at_least(self, 0, "codebook_size", "window")
        positive(self, "init_scale")

    def wrap(self, network: Network) -> "CodesMixture":
        """See `MixtureSettings.wrap`."""
        return CodesMixture(self, network)

    def sized(self, num_lambdas: int) -> "CodesSettings":
        """See `MixtureSettings.sized`."""
        return dataclasses.replace(self, codebook_size=self.codebook_size or num_lambdas)


@dataclass(frozen=True)
class CodeChain(Chain):
    """p(z_1) Π_w p(z_w | z_{w-1}) for codes z_w < L of W windows of `window` positions each (the last may be shorter).

    `log_step[b, w, i, j]` is log p(z_w = j | z_{w-1} = i) of sequence b; at w = 0 it is the same for each i. All are normalised over j.
    With `period` the windows divide so many positions, and those behind them share their codes: the channels of an image's pixels.
    """

    log_step: Float[Tensor, "B W L L"]
    window: int
    period: int | None = None

    @property
    def num_windows(self) -> int:
        """See `Chain.num_windows`."""
        return self.log_step.shape[1]

    def window_of(self, position: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
        """See `Chain.window_of`."""
        return (position if self.period is None else position % self.period) // self.window

    def window_at(self, link: int) -> Int64[Tensor, " B"]:
        """See `Chain.window_at`: one after the other."""
        return torch.full_like(self.log_step[:, 0, 0, 0], link, dtype=torch.int64)

    def moved(self, weight: Float[Tensor, "B L"] | None, link: int) -> Float[Tensor, "B L"]:
        """See `Chain.moved`."""
        step_BLL = self.log_step[:, link].exp()
        return step_BLL[:, 0] if weight is None else torch.einsum("bi,bij->bj", weight, step_BLL)

    @cached_property
    def log_marginal(self) -> Float[Tensor, "B W L"]:
        """See `Chain.log_marginal`; one step a window."""
        step_BWLL = self.log_step.exp()
        p_BL = step_BWLL[:, 0, 0]
        marginals = [p_BL]
        for step_BLL in step_BWLL[:, 1:].unbind(1):
            p_BL = torch.einsum("bi,bij->bj", p_BL, step_BLL)
            marginals.append(p_BL)
        return torch.stack(marginals, 1).clamp(min=torch.finfo(step_BWLL.dtype).tiny).log()

    def log_prob(self, log_emission: Float64[Tensor, "B W T L"]) -> Float64[Tensor, "B T"]:
        """See `Chain.log_prob`: the forward recursion in float64, scaled at every window."""
        step_BWLL = self.log_step.double().exp()
        top_BWT1 = log_emission.amax(3, keepdim=True).detach()
        emission_BWTL = (log_emission - top_BWT1).exp()
        forward_BTL = step_BWLL[:, 0, :1] * emission_BWTL[:, 0]
        totals = []
        for w in range(1, emission_BWTL.shape[1]):
            total_BT1 = forward_BTL.sum(2, keepdim=True).clamp(min=_LEAST)
            totals.append(total_BT1)
            forward_BTL = (forward_BTL / total_BT1) @ step_BWLL[:, w] * emission_BWTL[:, w]
        totals.append(forward_BTL.sum(2, keepdim=True).clamp(min=_LEAST))
        return (torch.stack(totals, 1).log() + top_BWT1).sum((1, 3))

    @torch.no_grad()
    def sample(self, u: Float64[Tensor, "B N W"]) -> Int64[Tensor, "B N W"]:
        """See `Chain.sample`."""
        step_BWLL = self.log_step.double().exp()
        row_B1 = torch.arange(len(u), device=u.device)[:, None]
        codes = [sample_categorical(step_BWLL[:, 0, 0], u[:, :, 0])]
        for w in range(1, u.shape[2]):
            p_BNL = step_BWLL[row_B1, w, codes[-1]]
            codes.append(sample_categorical(p_BNL.flatten(0, 1), u[:, :, w].flatten()).view(u.shape[:2]))
        return torch.stack(codes, 2)


class CodeHead(nn.Module):
    """Codes, how they shift and scale, and the distribution that their chain has given x_t.

    log p(z_w = j | z_{w-1} = i; x_t) = log softmax_j(step_ij + weight_j(h_w)), with h_w the mean features of window w behind the last
    attention. `mixture.ties=none` leaves out the first term, `mixture.weights=uniform` the second.
    """

    def __init__(self, settings: CodesSettings, width: int) -> None:
        super().__init__()
        self.settings = settings
        size = settings.codebook_size
        self.codebook = nn.Embedding(size, width)
        self.modulation = nn.Linear(width, 4 * width, bias=False)
        nn.init.normal_(self.codebook.weight)
        nn.init.normal_(self.modulation.weight, std=settings.init_scale / math.sqrt(width))
        if settings.ties == "chain":
            self.step = nn.Parameter(torch.empty(size, size))
            nn.init.normal_(self.step)
        if settings.weights == "context":
            self.weight = nn.Linear(width, size)
            nn.init.zeros_(self.weight.weight)
            nn.init.zeros_(self.weight.bias)

    def forward(
        self, h: Float[Tensor, "B P H"], lam: Latents, period: int | None = None
    ) -> tuple[Float[Tensor, "C N Q fourH"], CodeChain]:
        """Shifts and scales, and the chain: of all codes, C = Q = 1 and N = L, or of N samples at every position, C = B and Q = P."""
        chain = self.chain(h, period)
        if lam.enumerated:
            return self.modulation(self.codebook(lam.value[:1, :, 0]))[:, :, None], chain
        u_BNW = code_uniforms(lam, chain.num_windows)
        code_BNP = chain.sample(u_BNW)[:, :, chain.window_of(torch.arange(h.shape[1], device=h.device))]
        return F.embedding(code_BNP, self.modulation(self.codebook.weight)), chain

    def chain(self, h: Float[Tensor, "B P H"], period: int | None = None) -> CodeChain:
        """The distribution of the codes given x_t."""
        num_positions = h.shape[1]
        window = self.settings.window or num_positions
        short = -num_positions % window
        h_BWH = F.pad(h, (0, 0, 0, short)).unflatten(1, (-1, window)).sum(2)
        count_W1 = torch.full((h_BWH.shape[1], 1), window, dtype=h.dtype, device=h.device)
        count_W1[-1] -= short
        score_BW1L = self._weights(h_BWH / count_W1)[:, :, None]
        first_W11 = torch.arange(score_BW1L.shape[1], device=h.device)[:, None, None] == 0
        score_BWLL = score_BW1L + torch.where(first_W11, 0.0, self._ties().to(h.dtype))
        return CodeChain(score_BWLL.to(widest(h.dtype)).log_softmax(3), window, period)

    def _weights(self, h_BWH: Float[Tensor, "B W H"]) -> Float[Tensor, "B W L"]:
        if self.settings.weights == "uniform":
            return h_BWH.new_zeros(*h_BWH.shape[:2], self.settings.codebook_size)
        return self.weight(F.layer_norm(h_BWH, h_BWH.shape[-1:]))

    def _ties(self) -> Float[Tensor, "L L"]:
        if self.settings.ties == "none":
            return self.codebook.weight.new_zeros(self.settings.codebook_size, self.settings.codebook_size)
        return self.step


class CodedOutput(nn.Module):
    """To μ and log s of each pixel: what two layers make of its normed features and its place, both shifted and scaled by the code."""

    def __init__(self, channels: int, *, places: int, colours: int, scale: float) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(places, 2 * channels))
        nn.init.normal_(self.place)
        self.inner = nn.Linear(channels, 2 * channels)
        self.outer = nn.Linear(2 * channels, channels)
        self.output_head = nn.Linear(channels, 2 * colours)
        nn.init.normal_(self.output_head.weight, std=_OUTPUT_STD * scale / math.sqrt(channels))
        nn.init.zeros_(self.output_head.bias)

    def forward(
        self, h: Float[Tensor, "B 1 P C"], modulation: Float[Tensor, "_B L Q fourC"]
    ) -> Float[Tensor, "B L P K"]:
        """K = 2 numbers a channel for each of L codes, at each of P pixels."""
        normed = F.layer_norm(h, h.shape[-1:])
        shift_1, scale_1, shift_2, scale_2 = modulation.chunk(4, dim=3)
        inner = F.silu(self.inner(normed * (1 + scale_1) + shift_1) + self.place)
        added = self.output_head(F.silu(self.outer(inner) * (1 + scale_2) + shift_2))
        return _MOST * torch.tanh(added / _MOST)


class CodesMixture(CodedMixture):
    """`latent_head`, which shifts and scales the last MLP and the last norm; for pixels `latent_output` in their place."""

    settings: CodesSettings

    def __init__(self, settings: CodesSettings, network: Network) -> None:
        check(settings.codebook_size >= 1, "mixture.codebook_size", settings.codebook_size, "at least 1")
        super().__init__(settings, network, shares_backbone=settings.freeze_backbone)
        self.latent_head = CodeHead(settings, network.width)
        if network.image_shape is not None:
            rows, columns, colours = network.image_shape
            self.latent_output = CodedOutput(
                network.width, places=rows * columns, colours=colours, scale=settings.init_scale
            )

    def rows_by_block(self, num_lambdas: int) -> list[float]:
        """See `Mixture.rows_by_block`: attention is run once, the last MLP for every code."""
        return [1.0] * (self.network.config.num_blocks - 1) + [(1 + num_lambdas) / 2]

    def drive(self, stages: Any, lam: Latents) -> Rows:
        """See `Mixture.drive`."""
        if self.network.image_shape is None:
            modulation_CNQF, chain = self.latent_head(stages.before_last_mlp(), lam)
            features_BNDF = stages.last_mlp(modulation_CNQF)
        else:
            h_BPC = stages.hidden
            modulation_CNQF, chain = self.latent_head(h_BPC, lam, h_BPC.shape[1])
            features_BNDF = stages.features_with(self.latent_output(h_BPC[:, None], modulation_CNQF))
        rows = features_BNDF, stages.output_head
        return Chained(*rows, chain) if lam.enumerated else Rows(*rows)

"""What a sampler is, and what it has at hand: the network's calls, the process, the law of a draw, chance, and what is given."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import Rng, uniform
from di4c_lm.samplers.calls import Call, Calls
from di4c_lm.samplers.draw import Draw

ROWS = 256  # read out at once


@dataclass(frozen=True)
class Proposal:
    """Tokens drawn at M places, and the logarithms of their probabilities."""

    row_M: Int64[Tensor, " M"]
    position_M: Int64[Tensor, " M"]
    token_M: Int64[Tensor, " M"]
    log_p_M: Float64[Tensor, " M"]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One trajectory of B sequences. Positions in `fixed_BD` were given and never change; `teacher` is the hybrid's second network."""

    calls: Calls
    process: MaskedProcess
    draw: Draw
    rng: Rng
    fixed_BD: Bool[Tensor, "B D"]
    teacher: Calls | None = None

    def uniform(self, shape: tuple[int, ...]) -> Float64[Tensor, "..."]:
        """Uniforms in [0, 1), the first axis B."""
        return uniform(self.rng, shape, self.fixed_BD.device)

    def masked(self, x_BD: Int64[Tensor, "B D"]) -> Bool[Tensor, "B D"]:
        """Where `x_BD` is MASK."""
        return x_BD == self.process.mask_id

    def mask_prob(self, t: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """m(t), in float64."""
        return self.process.schedule.mask_prob(t)

    def every(self, t: Float64[Tensor, ""]) -> Float64[Tensor, " B"]:
        """The time of all sequences."""
        return t.expand(len(self.fixed_BD))

    def draw_at(
        self,
        x_BD: Int64[Tensor, "B D"],
        t_B: Float64[Tensor, " B"],
        where_BD: Bool[Tensor, "B D"],
        *,
        greedy: bool = False,
    ) -> Int64[Tensor, "B D"]:
        """`x_BD` with tokens drawn from p(x_0 | x_t) at `where_BD`, each given λ by itself; `greedy` takes the likeliest.

        Sequences with nothing to draw are not run. The output head runs at the places drawn alone.
        """
        drawn = self.propose(x_BD, t_B, where_BD, greedy=greedy, scored=False)
        x_BD = x_BD.clone()
        x_BD[drawn.row_M, drawn.position_M] = drawn.token_M
        return x_BD

    def propose(
        self,
        x_BD: Int64[Tensor, "B D"],
        t_B: Float64[Tensor, " B"],
        where_BD: Bool[Tensor, "B D"],
        *,
        guidance: float = 0.0,
        greedy: bool = False,
        scored: bool = True,
    ) -> Proposal:
        """The tokens of `draw_at`, with the logarithms of their probabilities where `scored` (else zeros)."""
        if self.draw.noise != "exact" and not greedy:
            raise ValueError(
                f"noise={self.draw.noise!r} is for sampler=ancestral and sampler=analytic; the others draw exactly"
            )
        lam = self.calls.latents(len(x_BD), self.rng, x_BD.device)
        u_BD = self.uniform(tuple(x_BD.shape))
        row_M, position_M = where_BD.nonzero(as_tuple=True)
        if len(row_M) == 0:
            return Proposal(row_M, position_M, row_M, u_BD.new_empty(0))
        run_R = where_BD.any(1).nonzero().squeeze(1)
        call = self.calls(x_BD, t_B, lam, run_R, guidance=guidance)
        place_B = where_BD.any(1).cumsum(0) - 1
        tokens, scores = [], []
        for row_C, position_C in zip(row_M.split(ROWS), position_M.split(ROWS), strict=True):
            p_CS = self.draw.weights(call.logits(place_B[row_C], position_C))
            token_C = p_CS.argmax(1) if greedy else sample_categorical(p_CS, u_BD[row_C, position_C])
            tokens.append(token_C)
            scores.append(_log_share(p_CS, token_C) if scored else u_BD.new_zeros(len(token_C)))
        return Proposal(row_M, position_M, torch.cat(tokens), torch.cat(scores))

    def log_probs(
        self, call: Call, row_N: Int64[Tensor, " N"], position_N: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N S"]:
        """Normalised log-probabilities of some places, at the temperature of the draw."""
        return (call.logits(row_N, position_N) / self.draw.temperature).log_softmax(1)


def _log_share(p_CS: Tensor, token_C: Tensor) -> Tensor:
    return (p_CS.gather(1, token_C[:, None])[:, 0].double() / p_CS.sum(1, dtype=torch.float64)).log()


@runtime_checkable
class Sampler(Protocol):
    """A way from noise to data: a frozen dataclass of its settings, the same for every masked process, network and domain."""

    def steps(
        self, walk: Walk, x: Int64[Tensor, "B D"], times: Float64[Tensor, " n"]
    ) -> Iterator[Int64[Tensor, "B D"]]:
        """The states after each step down `times`, beginning at `x`. The last has no MASK if `times` ends at 0."""
        ...

"""A denoiser whose marginals are those of a known distribution, in front of a transformer that mixtures can drive.

    logits = log p(x^d | x_t) + W h(x_t) + b

with p the exact posterior marginals and h the features of a `DIT`; W and b are 0 at first, so that the network is a perfect teacher: all
that a sampler of few steps gets wrong with it is the dependence of the positions that it reveals together. What a mixture adds to features
adds to log p.
"""

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import check
from di4c_lm.networks.dit import DIT, DitConfig, DitStages
from di4c_lm.processes.denoiser import LinearHead

_LEAST = -30.0  # the log-probability of what is impossible: finite, for the norms of what reads the features; 1e-13
_SPREAD = 0.02  # of W, where λ is to have an effect to begin with


@runtime_checkable
class Known(Protocol):
    """A distribution of sequences of S states, MASK being S, whose posterior marginals are known."""

    @property
    def num_states(self) -> int:
        """S."""
        ...

    def marginals_given(self, x_t: Int64[Tensor, "B D"]) -> Float[Tensor, "B D S"]:
        """p(x^d | what x_t shows) at every position."""
        ...


class Posterior:
    """log p(x^d | x_t), MASK and what is impossible at `_LEAST`. Equal sequences are asked about once, the last question is remembered."""

    def __init__(self, source: Known) -> None:
        self.source = source
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, x_t: Int64[Tensor, "B D"]) -> Float[Tensor, "B D Z"]:
        """The last state is MASK."""
        if self._last is None or not torch.equal(self._last[0], x_t):
            x_UD, row_B = x_t.unique(dim=0, return_inverse=True)
            p_UDS = self.source.marginals_given(x_UD.cpu())
            log_p_UDZ = F.pad(p_UDS.log().clamp_min(_LEAST).float(), (0, 1), value=_LEAST)
            self._last = x_t.clone(), log_p_UDZ.to(x_t.device)[row_B]
        return self._last[1]


class ExactDenoiser(DIT):
    """The exact posterior marginals of `posterior.source`; the first S + 1 features are their logarithms.

    The transformer reads, of a masked position, the mean embedding of what may stand there, and stands behind them in the features; the
    gates of its blocks are open from the start.
    """

    def __init__(self, model: DitConfig, *, posterior: Posterior) -> None:
        num_states = posterior.source.num_states + 1
        check(model.hidden_size > num_states, "model.hidden_size", model.hidden_size, f"above the {num_states} states")
        check(model.process == "masked", "model.process", model.process, "masked where the teacher is exact")
        check(model.modulation, "model.modulation", model.modulation, "true where the teacher is exact")
        check(not model.tied, "model.tied", model.tied, "false where the teacher is exact, whose W is no embedding")
        super().__init__(model, num_states=num_states)
        self.posterior = posterior
        self.sizes = {"posterior": posterior}
        for block in self.blocks:
            gates: Any = block.adaLN_modulation
            for gate in gates.bias.detach().chunk(6)[2::3]:
                gate.fill_(1.0)

    def loosen(self, generator: torch.Generator) -> None:
        """Give W small values, so that what λ changes inside the transformer is seen; the marginals are then nearly exact."""
        nn.init.normal_(self.output_layer.linear.weight, std=_SPREAD, generator=generator)

    def stages(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], cond: Tensor | None, *, share: bool
    ) -> "ExactStages":
        """See `Network.stages`."""
        sigma_M = self.noise.sigma(t) if self.config.time_conditioning else torch.zeros_like(t[:1])
        return ExactStages(self, x_t, sigma_M, share=share)

    def output_head(self) -> LinearHead:
        """log p as it is, W and b of the rest; MASK has probability 0."""
        linear = self.output_layer.linear
        own = torch.eye(self.num_states, dtype=linear.weight.dtype, device=linear.weight.device)
        weight = torch.cat([own, linear.weight[:, self.num_states :]], 1)
        return LinearHead(weight, linear.bias, impossible=self.num_states - 1, matmul_dtype=self.matmul_dtype)


class ExactStages(DitStages):
    """A pass of `ExactDenoiser`."""

    def __init__(
        self, network: ExactDenoiser, x_t: Int64[Tensor, "B D"], sigma: Float[Tensor, " M"], *, share: bool = False
    ) -> None:
        super().__init__(network, x_t, sigma, share=share)
        self.log_p = network.posterior(self.seen).to(self.x.dtype)
        hidden = (self.seen == network.num_states - 1)[..., None]
        self.x = self.x + hidden * (self.log_p.exp() @ network.vocab_embed.embedding)

    @property
    def narrows(self) -> bool:
        """See `BlockStages.narrows`: not, as `log_p` stands beside all that the blocks make."""
        return False

    def _take(self, rows: Any) -> None:
        super()._take(rows)
        self.log_p = rows(self.log_p)

    def _features(self, shift_scale: Tensor | None) -> Tensor:
        own = super()._features(shift_scale)
        return torch.cat([self.log_p, own[..., self.log_p.shape[2] :]], 2)

"""The absorbing process: every position is masked by itself, at the rate of a schedule, and comes back once."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from di4c_lm.processes.process import Predict, Process, StateTensor, TimeTensor, UniformTensor
from di4c_lm.processes.rng import Rng, uniform
from di4c_lm.processes.schedules import LogLinear, Schedule

NEVER = -1e6  # the logit of a state that cannot be: its probability is exactly 0 in float32 and float64


@dataclass(frozen=True)
class MaskedProcess(Process):
    """Masked diffusion (Sahoo et al. 2024; Shi et al. 2024) on tokens below `mask_id`, with MASK = `mask_id`."""

    mask_id: int
    schedule: Schedule = field(default_factory=LogLinear)

    def corrupt(self, x_0: Int64[Tensor, "B D"], t: Float[Tensor, " B"], rng: Rng) -> Int64[Tensor, "B D"]:
        """x_t ~ q(x_t | x_0): each position masked with probability m(t)."""
        u_BD = uniform(rng, tuple(x_0.shape), x_0.device)
        return torch.where(u_BD < self.schedule.mask_prob(t.double())[:, None], self.mask_id, x_0)

    @property
    def min_time(self) -> float:
        """0: networks are asked for x_0 at any time above it."""
        return 0.0

    def unknown(self, x_t: StateTensor) -> Bool[Tensor, "..."]:
        """The masked positions."""
        return x_t == self.mask_id

    def prior(self, num_batch: int, num_positions: int, rng: Rng, device: torch.device) -> Int64[Tensor, "B D"]:
        """MASK everywhere; `rng` is not used."""
        return torch.full((num_batch, num_positions), self.mask_id, device=device)

    def revealed(self, x_t: StateTensor, t: TimeTensor, s: TimeTensor, u: UniformTensor) -> Bool[Tensor, "..."]:
        """Which masked positions become visible between t and s < t: those whose uniform is at least m(s) / m(t); at s = 0 all."""
        stay = self.schedule.mask_prob(s.double()) / self.schedule.mask_prob(t.double())
        return self.unknown(x_t) & ((u >= stay) | (s == 0))

    def bridge(self, x_t: StateTensor, x_0: StateTensor, t: TimeTensor, s: TimeTensor, u: UniformTensor) -> StateTensor:
        """x_s ~ q(x_s | x_0, x_t): what becomes visible is x_0, the rest stays as it is."""
        return torch.where(self.revealed(x_t, t, s, u), x_0, x_t)

    def reverse(
        self, x_t: Int64[Tensor, "B D"], predict: Predict, t: Float[Tensor, " B"], s: Float[Tensor, " B"], rng: Rng
    ) -> Int64[Tensor, "B D"]:
        """x_s ~ p(x_s | x_t) (Sahoo et al. 2024, Eq. 7): first which positions become visible, then x_0 at those alone.

        p(x_s = v | x_t = MASK) = (m(t) - m(s)) / m(t) p(x_0 = v | x_t) for a token v, m(s) / m(t) for MASK.
        """
        revealed_BD = self.revealed(x_t, t[:, None], s[:, None], uniform(rng, tuple(x_t.shape), x_t.device))
        return torch.where(revealed_BD, predict(x_t, t, revealed_BD, rng), x_t)

    def constrain(self, logits: Float[Tensor, "B D S"], x_t: Int64[Tensor, "B D"]) -> Float[Tensor, "B D S"]:
        """SUBS (Sahoo et al. 2024, section 3.2.3): normalised log-probabilities; MASK is impossible, a visible token certain."""
        states_S = torch.arange(logits.shape[-1], device=logits.device)
        log_p_BDS = (logits + torch.where(states_S == self.mask_id, NEVER, 0.0).to(logits.dtype)).log_softmax(-1)
        certain_BDS = torch.where(states_S == x_t[..., None], 0.0, NEVER).to(log_p_BDS.dtype)
        return torch.where((x_t == self.mask_id)[..., None], log_p_BDS, certain_BDS)

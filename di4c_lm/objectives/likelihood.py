"""Fitting a mixture to data by its likelihood, -log E_λ Π_d p^d(x_0^d | x_t; λ) over the masked positions.

This is ours and not Di4C: no teacher is asked, unless `marginal_weight` holds to it the marginals of a student whose network is trained
too, as a part of Di4C's data term does (Hayakawa et al. 2025, section 3.3). What holds the marginals else is the mixture itself, such as a
class chain over a frozen teacher, whose marginals stay the teacher's whatever is learned. Relatives: copulas over a masked-diffusion
model's marginals (discrete copula diffusion, Liu et al. 2024), probabilistic circuits over them (CoDD, arXiv 2603.00045), and the
class-based n-gram models of Brown et al. 1992, from whose class pairs the chain begins.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import at_least, check, section, setting
from di4c_lm.data.batches import Batch, Noised, batch_rng, condition_of, noised
from di4c_lm.objectives.objective import MixtureObjectiveSettings, Objective
from di4c_lm.processes.denoiser import Positions, predict_at
from di4c_lm.processes.masked import Times, above
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import Rng, uniform


@section
class Likelihood(MixtureObjectiveSettings):
    """The log-likelihood of data under a mixture that begins as its teacher, or from random weights. Ours."""

    times: Times = setting(Times(grid_share=0.8), "how the time t of x_t is sampled")
    marginal_weight: float = setting(
        0.0, "weight of KL(teacher || student's marginal), for a network that is trained; 0: the teacher is not called"
    )

    label: ClassVar[str] = "fit"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "marginal_weight")
        allowed = "0 where init=scratch, which has no teacher"
        check(self.init == "teacher" or not self.marginal_weight, "marginal_weight", self.marginal_weight, allowed)

    @property
    def num_distributions(self) -> int:
        """The teacher's, where it is called."""
        return int(self.marginal_weight > 0)

    def noise(self, process: Process, batch: Batch, rng: Rng) -> Noised:
        """A time for each sequence of the batch, the end of its step, and x_t."""
        t_B, s_B = self.times.sample_steps(len(batch.x), rng, device=batch.x.device)
        t_B = above(t_B, process.min_time)
        return Noised(noised(process, batch, t_B, rng), t_B, s_B)

    def build(
        self, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> "LikelihoodObjective":
        """The module that the engine wraps; a teacher that is not called is not held, its weights are in the student."""
        called = teacher if self.marginal_weight > 0 else None
        return LikelihoodObjective(self, student, process, seed=seed, teacher=called)


class LikelihoodObjective(Objective):
    """The negative log-likelihood of x_0 at the masked positions of x_t, jointly: of all, or of those that a step of the grid reveals."""

    process: Any  # a `Process`; of a mixture over what a step reveals a `MaskedProcess`
    settings: Likelihood

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch in nats a sequence, and the mean of corr(x_0); what Di4C has beside it, by the same names, is 0.

        With `marginal_weight` the loss has also Σ_d KL(teacher^d ‖ m^d) of the positions, times it.
        """
        rng, x_0, settings = batch_rng(self.seed, batch), batch.x, self.settings
        cond_B = condition_of(batch, settings.label_drop, rng)
        made = batch.noised or settings.noise(self.process, batch, rng)
        x_t, t_B, s_B = made.x_t, made.t, made.s
        if self.student.joint_over == "revealed":
            u_BD = uniform(rng, tuple(x_0.shape), x_0.device)
            positions = Positions.where(self.process.revealed(x_t, t_B[:, None], s_B[:, None], u_BD))
        else:
            positions = Positions.where(self.process.unknown(x_t))
        lam = self.student.training_latents(len(x_0), settings.num_lambdas, rng, x_0.device)
        asked = (positions, positions.gather(x_0)[:, None], self.held_to(x_t, t_B, positions, rng, cond_B))
        known = {} if made.features is None else {"features": made.features}
        at = positions.among(x_t.shape[1])
        prediction = predict_at(self.student, x_t, t_B.float(), lam, cond_B, at, **known)
        reading = prediction.read(*asked, chunk_rows=settings.chunk_rows)
        corr = (reading.product - reading.joint).detach().mean()
        none, held = torch.zeros_like(corr), reading.divergence.sum(1).mean()
        loss = -reading.joint.mean() + settings.marginal_weight * held
        return loss, {"distil": none, "consistency": none, "data_corr": corr, "data_marginal": held.detach()}

    @torch.no_grad()
    def held_to(
        self,
        x_t: Int64[Tensor, "B D"],
        t_B: Float[Tensor, " B"],
        positions: Positions,
        rng: Rng,
        cond_B: Int64[Tensor, "B *each"] | None,
    ) -> list[Float[Tensor, "M S"]]:
        """The teacher's marginals at the positions, where it is called."""
        settings = self.settings
        if settings.marginal_weight == 0:
            return []
        lam = self.teacher.training_latents(len(x_t), settings.num_lambdas, rng, x_t.device)
        said = predict_at(self.teacher, x_t, t_B.float(), lam, cond_B, positions.among(x_t.shape[1]))
        return [said.marginals(positions, chunk_rows=settings.chunk_rows)]

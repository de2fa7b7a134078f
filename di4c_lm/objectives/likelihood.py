"""Fitting a mixture to data by its likelihood, -log E_λ Π_d p^d(x_0^d | x_t; λ) over the masked positions.

This is ours and not Di4C: no teacher is asked. What holds the marginals is the mixture itself, such as a class chain over a frozen teacher,
whose marginals stay the teacher's whatever is learned. Relatives: copulas over a masked-diffusion model's marginals (discrete copula
diffusion, Liu et al. 2024), probabilistic circuits over them (CoDD, arXiv 2603.00045), and the class-based n-gram models of Brown et al.
1992, from whose class pairs the chain begins.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.core.settings import at_least, section, setting
from di4c_lm.data.batches import Batch, batch_rng, classes_of, noised
from di4c_lm.objectives.objective import Objective, ObjectiveSettings
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.masked import Times, above
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import uniform


@section
class Likelihood(ObjectiveSettings):
    """The log-likelihood of data under a mixture that begins as its teacher. Ours; the teacher is not called in training."""

    num_lambdas: int = setting(16, "L, samples of λ for each x_t, where λ is not enumerated")
    times: Times = setting(Times(grid_share=0.8), "how the time t of x_t is sampled")

    takes_mixture: ClassVar[bool] = True
    label: ClassVar[str] = "fit"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "num_lambdas")

    def build(
        self, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> "LikelihoodObjective":
        """The module that the engine wraps; the teacher's weights are in the student."""
        return LikelihoodObjective(self, student, process, seed=seed)


class LikelihoodObjective(Objective):
    """The negative log-likelihood of x_0 at the masked positions of x_t, jointly: of all, or of those that a step of the grid reveals."""

    process: Any  # a `Process`; of a mixture over what a step reveals a `MaskedProcess`
    settings: Likelihood

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch in nats a sequence, and the mean of corr(x_0); the other terms of Di4C, by the same names, are 0."""
        rng, x_0, settings = batch_rng(self.seed, batch), batch.x, self.settings
        cond_B = classes_of(batch, settings.label_drop, rng)
        t_B, s_B = settings.times.sample_steps(len(x_0), rng, device=x_0.device)
        t_B = above(t_B, self.process.min_time)
        x_t = noised(self.process, batch, t_B, rng)
        if self.student.joint_over == "revealed":
            u_BD = uniform(rng, tuple(x_0.shape), x_0.device)
            positions = Positions.where(self.process.revealed(x_t, t_B[:, None], s_B[:, None], u_BD))
        else:
            positions = Positions.where(self.process.unknown(x_t))
        lam = self.student.training_latents(len(x_0), settings.num_lambdas, rng, x_0.device)
        reading = self.student(x_t, t_B.float(), lam, cond_B).read(
            positions, positions.gather(x_0)[:, None], chunk_rows=settings.chunk_rows
        )
        loss = -reading.joint.mean()
        corr = (reading.product - reading.joint).detach().mean()
        none = torch.zeros_like(corr)
        return loss, {"distil": none, "consistency": none, "data_corr": corr, "data_marginal": none}

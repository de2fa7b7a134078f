"""Cross-entropy of x_0 given x_t: a denoiser of any process from data alone, such as the teachers of images."""

from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.core.settings import section, setting
from di4c_lm.data.batches import Batch, batch_rng, classes_of
from di4c_lm.objectives.objective import Objective, ObjectiveSettings
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.masked import above
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import uniform


@section
class Denoising(ObjectiveSettings):
    """Cross-entropy of x_0 given x_t at all times, from data alone: how image teachers are trained."""

    times: Literal["antithetic", "iid"] = setting(
        "antithetic",
        "how t is sampled; antithetic: one t in each of G equal parts of (0, 1], G the global batch; iid: independently",
    )

    needs_teacher = False
    label: ClassVar[str] = "denoising"

    @property
    def antithetic(self) -> bool:
        """Whether batches are to be stratified."""
        return self.times == "antithetic"

    def build(
        self, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> "DenoisingObjective":
        """The module that the engine wraps."""
        return DenoisingObjective(self, student, process, seed=seed)


class DenoisingObjective(Objective):
    """-Σ_d log p(x_0^d | x_t) over the positions not known, t uniform above the process's lowest time: least at the true marginals.

    Of a batch with strata the times are antithetic, one in each of G equal parts of (0, 1], G the size of the global batch; of any other
    batch they are independent.
    """

    settings: Any

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch of the cross-entropy in nats a position, known positions counting as 0."""
        loss = self.cross_entropy(batch)[0].mean() / batch.x.shape[1]
        return loss, {"cross_entropy": loss.detach()}

    def cross_entropy(self, batch: Batch) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """-Σ_d log p(x_0^d | x_t) of each example, in nats a sequence, and its t."""
        rng = batch_rng(self.seed, batch)
        cond_B = classes_of(batch, self.settings.label_drop, rng)
        u_B = uniform(rng, (len(batch.x),), batch.x.device)
        t_B = above(1 - batch.spread(u_B), self.process.min_time)
        x_t = self.process.corrupt(batch.x, t_B, rng)
        positions = Positions.where(self.process.unknown(x_t))
        prediction = self.student(x_t, t_B.float(), None, cond_B)
        reading = prediction.read(positions, positions.gather(batch.x)[:, None], chunk_rows=self.settings.chunk_rows)
        return -reading.joint[:, 0], t_B

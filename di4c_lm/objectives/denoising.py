"""Cross-entropy of x_0 given x_t: a denoiser of any process from data alone."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.data.batch import Batch, StratifiedBatch, batch_rng, classes_of
from di4c_lm.losses.mdlm import mdlm_bound
from di4c_lm.losses.positions import Positions
from di4c_lm.objectives.external import output_head_parameters
from di4c_lm.processes.denoiser import Prediction
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import uniform
from di4c_lm.processes.times import above


class DenoisingObjective(nn.Module):
    """-Σ_d log p(x_0^d | x_t) over the open positions, t uniform above the process's lowest time: least where p are the true marginals.

    Of a `StratifiedBatch` the times are antithetic, of any other batch independent. A share `label_drop` of the classes is hidden.
    """

    def __init__(
        self, student: nn.Module, process: Process, *, seed: int, label_drop: float = 0.0, chunk_rows: int = 0
    ) -> None:
        super().__init__()
        self.student = student
        self.process = process
        self.seed = seed
        self.label_drop = label_drop
        self.chunk_rows = chunk_rows

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch of the cross-entropy in nats a position, closed positions counting as 0."""
        rng = batch_rng(self.seed, batch)
        cond_B = classes_of(batch, self.label_drop, rng)
        u_B = uniform(rng, (len(batch.x),), batch.x.device)
        t_B = above(1 - (batch.spread(u_B) if isinstance(batch, StratifiedBatch) else u_B), self.process.min_time)
        x_t = self.process.corrupt(batch.x, t_B, rng)
        positions = Positions.where(self.process.unknown(x_t))
        prediction: Prediction = self.student(x_t, t_B.float(), None, cond_B)
        entropy_B = mdlm_bound(
            prediction.features[positions.example, 0, positions.position],
            prediction.output_head,
            positions,
            positions.gather(batch.x),
            torch.ones_like(t_B),
            chunk_rows=self.chunk_rows,
        )
        loss = entropy_B.mean() / batch.x.shape[1]
        return loss, {"cross_entropy": loss.detach()}

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """Parameters that are used outside the module that owns them: the output head's, inside the loss."""
        return output_head_parameters(self, self.student)

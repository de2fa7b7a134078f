"""MDLM's objective (Sahoo et al. 2024): a masked-diffusion model from data alone."""

from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.data.batch import Batch, StratifiedBatch, batch_rng
from di4c_lm.losses.mdlm import log_linear_weight, mdlm_bound
from di4c_lm.losses.positions import Positions
from di4c_lm.objectives.external import output_head_parameters
from di4c_lm.processes.denoiser import Prediction
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import uniform


class MdlmObjective(nn.Module):
    """Training a masked-diffusion model from data by its continuous-time bound, one t an example.

    Of a `StratifiedBatch` the times are antithetic: one in each of G equal parts of (0, 1], G the size of the global batch, as in Sahoo
    et al. 2024; of any other batch they are independent.
    """

    def __init__(self, student: nn.Module, process: MaskedProcess, *, seed: int, chunk_rows: int = 0) -> None:
        super().__init__()
        self.student = student
        self.process = process
        self.seed = seed
        self.chunk_rows = chunk_rows

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch of the bound in nats a sequence, and the same a token."""
        rng = batch_rng(self.seed, batch)
        u_B = uniform(rng, (len(batch.x),), batch.x.device)
        t_B = 1 - (batch.spread(u_B) if isinstance(batch, StratifiedBatch) else u_B)
        x_t = self.process.corrupt(batch.x, t_B, rng)
        positions = Positions.where(x_t == self.process.mask_id)
        prediction: Prediction = self.student(x_t, t_B.float())
        features_MH = prediction.features[positions.example, 0, positions.position]
        bound_B = mdlm_bound(
            features_MH,
            prediction.output_head,
            positions,
            positions.gather(batch.x),
            log_linear_weight(t_B),
            chunk_rows=self.chunk_rows,
        )
        loss = bound_B.mean()
        return loss, {"bound_per_token": loss.detach() / batch.x.shape[1]}

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """Parameters that are used outside the module that owns them: the output head's, inside the loss."""
        return output_head_parameters(self, self.student)

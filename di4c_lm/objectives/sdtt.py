"""Self-Distillation Through Time (Deschenaux and Gulcehre 2025): several steps of a teacher in one call of the student."""

from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from di4c_lm.data.batch import Batch, batch_rng
from di4c_lm.losses.positions import Positions
from di4c_lm.losses.sdtt import sdtt_divergence
from di4c_lm.objectives.external import output_head_parameters
from di4c_lm.objectives.settings import SdttConfig
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import Denoiser, Prediction, row_chunks, rows_at_once, widest
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import Rng, uniform


def teacher_steps(config: SdttConfig, t: Float[Tensor, " B"]) -> list[tuple[Float[Tensor, " B"], Float[Tensor, " B"]]]:
    """The times (from, to) of the teacher's n steps of size h = min(`config.step`, t / n) from t.

    `exact`: from t - k h, k = 0..n-1. `legacy`, as published: from t (1 - k / (n - 1)) + (1 - t) (t - n h), where (1 - t) stands for the
    k / (n - 1) of an interpolation that would end at t - n h; each step is of size h all the same, and ends no lower than 0.
    """
    count = config.teacher_steps
    h_B = torch.clamp(t / count, max=config.step)
    if config.time_grid == "exact":
        return [(t - k * h_B, t - (k + 1) * h_B) for k in range(count)]
    weights = torch.linspace(1, 0, count, dtype=t.dtype).tolist()
    from_times = [t * weight + (1 - t) * (t - count * h_B) for weight in weights]
    return [(from_B, (from_B - h_B).clamp_min(0)) for from_B in from_times]


class SdttObjective(nn.Module):
    """One round of SDTT on a masked process (paper, Eq. 6 and algorithm 1), each example with its own t ~ U(0, 1].

    The teacher is held outside the module's parameters: it is neither optimised, saved nor partitioned.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, process: MaskedProcess, config: SdttConfig, *, seed: int
    ) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher.eval().requires_grad_(False),)
        self.process = process
        self.config = config
        self.seed = seed

    @property
    def teacher(self) -> Denoiser:
        """The frozen network that is distilled."""
        return cast(Denoiser, self._teacher[0])

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch of the divergence summed over the masked positions, and the same a token."""
        rng = batch_rng(self.seed, batch)
        t_B = 1 - uniform(rng, (len(batch.x),), batch.x.device)
        x_t = self.process.corrupt(batch.x, t_B, rng)
        positions = Positions.where(x_t == self.process.mask_id)
        target_MS = self.targets(x_t, positions, t_B, rng)
        prediction: Prediction = self.student(x_t, t_B.float())
        divergence_M = sdtt_divergence(
            self.config.divergence,
            prediction.features[positions.example, 0, positions.position],
            positions.position,
            prediction.output_head,
            target_MS,
            chunk_rows=self.config.chunk_rows,
        )
        loss = positions.per_example(divergence_M).mean()
        return loss, {"divergence_per_token": loss.detach() / batch.x.shape[1]}

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """Parameters that are used outside the module that owns them: the output head's, inside the loss."""
        return output_head_parameters(self, self.student)

    @torch.no_grad()
    def targets(
        self, x_t: Int64[Tensor, "B D"], positions: Positions, t_B: Float[Tensor, " B"], rng: Rng
    ) -> Float[Tensor, "M S"]:
        """Algorithm 1: at each site the teacher's log-probabilities in the step that reveals it, of the last step where none does."""
        target_MS = torch.empty(0, device=x_t.device)

        def predict(x: Tensor, from_B: Tensor, needed_BD: Tensor, rng: Rng) -> Tensor:
            """x_0 where needed, by the teacher; its log-probabilities there go into `target_MS`."""
            nonlocal target_MS
            prediction = self.teacher(x, from_B.float())
            if not len(target_MS):
                shape = (len(positions.position), prediction.output_head.num_states)
                target_MS = torch.empty(shape, dtype=widest(prediction.features.dtype), device=x.device)
            u_BD, x_0 = uniform(rng, tuple(x.shape), x.device), x.clone()
            index_N = needed_BD[positions.example, positions.position].nonzero().squeeze(1)
            for rows in row_chunks(len(index_N), rows_at_once(prediction.output_head, self.config.chunk_rows)):
                index_C = index_N[rows]
                at_C = positions.example[index_C], positions.position[index_C]
                log_p_CS = prediction.logits(*at_C).log_softmax(1)
                target_MS[index_C] = log_p_CS
                x_0[at_C] = sample_categorical(log_p_CS.exp(), u_BD[at_C])
            return x_0

        x, (*steps, (last_B, _)) = x_t, teacher_steps(self.config, t_B)
        for from_B, to_B in steps:
            x = self.process.reverse(x, predict, from_B, to_B, rng)
        predict(x, last_B, self.process.unknown(x), rng)
        return target_MS

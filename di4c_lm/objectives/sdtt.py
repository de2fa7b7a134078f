"""Self-Distillation Through Time (Deschenaux and Gulcehre 2025): several steps of a teacher in one call of the student."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import at_least, check, positive, section, setting
from di4c_lm.data.batches import Batch, batch_rng, condition_of, noised
from di4c_lm.losses.sdtt import DivergenceName, sdtt_divergence
from di4c_lm.objectives.objective import Objective, ObjectiveSettings
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import Positions, predict_at, row_chunks, rows_at_once, widest
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import Rng, uniform


@section
class Sdtt(ObjectiveSettings):
    """Self-Distillation Through Time: the student learns to predict in one call what its teacher predicts over several steps.

    A teacher's step in round r is `dt` · `growth`^(r-1), at most t / `teacher_steps`. `time_grid=legacy` repeats the published code's
    mis-interpolated times.
    """

    divergence: DivergenceName = setting(
        "kl_backward",
        "divergence of the student from the teacher; those published are kl_backward (kld), mse and tv (tvd)",
    )
    dt: float = setting(1 / 1024, "length of a teacher's step in the first round")
    round: int = setting(1, "number of this round; counted for you in a chain of rounds")
    growth: float = setting(2.0, "factor on the teacher's step from round to round")
    teacher_steps: int = setting(2, "teacher steps that one student step replaces")
    time_grid: Literal["exact", "legacy"] = setting(
        "exact", "exact, or legacy: the mis-interpolated times of the published code"
    )

    num_distributions: ClassVar[int] = 1
    label: ClassVar[str] = "sdtt"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "round", "growth", "teacher_steps")
        positive(self, "dt")
        allowed = f"at most 1 / teacher_steps = {1 / self.teacher_steps:g}"
        check(self.teacher_steps * self.step <= 1, "dt * growth^(round - 1)", self.step, allowed)

    @property
    def step(self) -> float:
        """A teacher's step in this round."""
        return self.dt * self.growth ** (self.round - 1)

    def times(self, t: Float[Tensor, " B"]) -> list[tuple[Float[Tensor, " B"], Float[Tensor, " B"]]]:
        """The times (from, to) of the teacher's n steps of size h = min(`step`, t / n) from t.

        `exact`: from t - k h, k = 0..n-1. `legacy`, as published: from t (1 - k / (n - 1)) + (1 - t) (t - n h), where (1 - t) stands for
        the k / (n - 1) of an interpolation that would end at t - n h; each step is of size h all the same, and ends no lower than 0.
        """
        count = self.teacher_steps
        h_B = torch.clamp(t / count, max=self.step)
        if self.time_grid == "exact":
            return [(t - k * h_B, t - (k + 1) * h_B) for k in range(count)]
        weights = torch.linspace(1, 0, count, dtype=t.dtype).tolist()
        from_times = [t * weight + (1 - t) * (t - count * h_B) for weight in weights]
        return [(from_B, (from_B - h_B).clamp_min(0)) for from_B in from_times]

    def build(
        self, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> "SdttObjective":
        """The module that the engine wraps. Raises `ValueError` for a process that does not mask."""
        check(isinstance(process, MaskedProcess), "objective", "sdtt", "another where noise is not masking")
        return SdttObjective(self, student, process, seed=seed, teacher=teacher)


class SdttObjective(Objective):
    """One round of SDTT on a masked process (paper, Eq. 6 and algorithm 1), each example with its own t ~ U(0, 1]."""

    settings: Sdtt

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch of the divergence summed over the masked positions, and the same a token."""
        rng = batch_rng(self.seed, batch)
        cond_B = condition_of(batch, self.settings.label_drop, rng)
        t_B = 1 - uniform(rng, (len(batch.x),), batch.x.device)
        x_t = noised(self.process, batch, t_B, rng)
        positions = Positions.where(self.process.unknown(x_t))
        target_MS = self.targets(x_t, positions, t_B, rng, cond_B)
        prediction = predict_at(self.student, x_t, t_B.float(), None, cond_B, positions.among(x_t.shape[1]))
        divergence_M = sdtt_divergence(
            self.settings.divergence,
            prediction.features[positions.example, 0, positions.position],
            positions.position,
            prediction.output_head,
            target_MS,
            chunk_rows=self.settings.chunk_rows,
        )
        loss = positions.per_example(divergence_M).mean()
        return loss, {"divergence_per_token": loss.detach() / batch.x.shape[1]}

    @torch.no_grad()
    def targets(
        self,
        x_t: Int64[Tensor, "B D"],
        positions: Positions,
        t_B: Float[Tensor, " B"],
        rng: Rng,
        cond_B: Int64[Tensor, "B *each"] | None = None,
    ) -> Float[Tensor, "M S"]:
        """Algorithm 1: at each position the teacher's log-probabilities in the step that reveals it, or of the last step."""
        target_MS = torch.empty(0, device=x_t.device)

        def predict(x: Tensor, from_B: Tensor, needed_BD: Bool[Tensor, "B D"], rng: Rng) -> Tensor:
            """x_0 where needed, by the teacher; its log-probabilities there go into `target_MS`."""
            nonlocal target_MS
            prediction = predict_at(self.teacher, x, from_B.float(), None, cond_B, needed_BD)
            if not len(target_MS):
                shape = (len(positions.position), prediction.output_head.num_states)
                target_MS = torch.empty(shape, dtype=widest(prediction.features.dtype), device=x.device)
            u_BD, x_0 = uniform(rng, tuple(x.shape), x.device), x.clone()
            index_N = needed_BD[positions.example, positions.position].nonzero().squeeze(1)
            for rows in row_chunks(len(index_N), rows_at_once(prediction.output_head, self.settings.chunk_rows)):
                index_C = index_N[rows]
                at_C = positions.example[index_C], positions.position[index_C]
                log_p_CS = prediction.logits(*at_C).log_softmax(1)
                target_MS[index_C] = log_p_CS
                x_0[at_C] = sample_categorical(log_p_CS.exp(), u_BD[at_C])
            return x_0

        x, (*steps, (last_B, _)) = x_t, self.settings.times(t_B)
        for from_B, to_B in steps:
            x = self.process.reverse(x, predict, from_B, to_B, rng)
        predict(x, last_B, self.process.unknown(x), rng)
        return target_MS

"""The teacher's step from t down to u: its size, and where it leads."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from di4c_lm.core.settings import at_least, check, section, setting, unit
from di4c_lm.losses.reading import sample_rows
from di4c_lm.networks.base import Rows
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import Denoiser, Positions, predict_at, predictor, row_chunks, widest
from di4c_lm.processes.masked import Times, above
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import Rng, split, uniform

_SAMPLED_ROWS = 256  # rows of probabilities held at once


@section
class TeacherStep:
    """The step t - u of the teacher, in `steps` equal steps of its own.

    `fixed`: min(size, t/2), the rule of Di4C's text and ImageNet runs. `fraction`: size · t. `log_uniform`: on [low, high], sampled before
    t, which lies above it: the rule of the CIFAR-10 run.
    """

    distribution: Literal["fixed", "fraction", "log_uniform"] = setting(
        "fixed", "distribution of the size t - u of the teacher's step"
    )
    size: float = setting(1 / 1024, "with distribution=fixed the size t - u itself; with fraction its share of t")
    low: float = setting(0.001, "smallest size with distribution=log_uniform")
    high: float = setting(0.01, "largest size with distribution=log_uniform")
    steps: int = setting(1, "equal steps in which the teacher goes from t to u")

    def __post_init__(self) -> None:
        unit(self, "size", "low")
        check(self.size > 0, "size", self.size, "a value in (0, 1]")
        check(0 < self.low <= self.high, "low", self.low, f"a value in (0, high={self.high}]")
        check(self.high <= 0.5, "high", self.high, "a value of at most 0.5")
        at_least(self, 1, "steps")

    def sample_times(
        self, times: Times, num_examples: int, rng: Rng, *, delta: float, floor: float, device: torch.device
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(t, u), floor < u < t, one pair an example; t by `times`."""
        if self.distribution == "log_uniform":
            v_B = uniform(rng, (num_examples,), device)
            size_B = self.low * (self.high / self.low) ** v_B
            t_B = above(times.sample(num_examples, rng, delta=delta, device=device), floor + size_B)
            return t_B, t_B - size_B
        t_B = above(times.sample(num_examples, rng, delta=delta, device=device), floor)
        return t_B, self.end(t_B, floor)

    def end(self, t: Float[Tensor, " B"], floor: float = 0.0) -> Float[Tensor, " B"]:
        """u of a step that is not sampled; with t the time above `floor`, `fixed` goes no further than half the way down to it."""
        assert self.distribution != "log_uniform"
        room_B = t - floor
        if self.distribution == "fixed":
            return t - torch.clamp(room_B / 2, max=self.size)
        return floor + room_B * (1 - self.size)

    def between(self, t: Float[Tensor, " B"], u: Float[Tensor, " B"]) -> list[Float[Tensor, " B"]]:
        """t, the times between, and u."""
        return [t + (u - t) * k / self.steps for k in range(self.steps + 1)]


@torch.no_grad()
def step_down(
    teacher: Denoiser,
    process: Process,
    x_t: Int64[Tensor, "B D"],
    positions: Positions,
    times: list[Float[Tensor, " B"]],
    num_samples: int,
    rng: Rng,
    cond: Int64[Tensor, "B *each"] | None = None,
    *,
    chunk_rows: int = 0,
) -> tuple[Float[Tensor, "M S"], Int64[Tensor, "B I D"]]:
    """The teacher's marginals at the positions of x_t, and I samples x_u from each x_t, a step from each of `times` to the next."""
    # As `process.reverse`, but the teacher is run once a sequence: its distribution at each position is sampled from I times.
    lam = teacher.sample_latents(len(x_t), num_samples, rng, x_t.device)
    prediction: Rows = predict_at(teacher, x_t, times[0].float(), lam, cond, positions.among(x_t.shape[1]))
    u_MI = uniform_at(positions, rng, num_samples, x_t.shape[1])
    if lam is None:
        teacher_MS = prediction.marginals(positions, chunk_rows=chunk_rows)
        x_0_MI = torch.empty_like(u_MI, dtype=torch.int64)
        for rows in row_chunks(len(u_MI), _SAMPLED_ROWS):
            x_0_MI[rows] = sample_categorical(teacher_MS[rows], u_MI[rows])
    else:
        features_MIH, head = positions.features(prediction.features), prediction.output_head
        teacher_MS = torch.zeros(len(u_MI), head.num_states, dtype=widest(features_MIH.dtype), device=x_t.device)
        into_N = torch.arange(len(u_MI), device=x_t.device).repeat_interleave(num_samples)
        x_0_MI = sample_rows(
            features_MIH.flatten(0, 1),
            positions.position[into_N],
            head,
            u_MI.flatten(),
            teacher_MS,
            into_N,
            1 / num_samples,
            chunk_rows=chunk_rows,
        ).view_as(u_MI)
    u_bridge_MI = uniform_at(positions, rng, num_samples, x_t.shape[1])
    x_BID = bridged(process, x_t, x_0_MI, positions, times[0], times[1], u_bridge_MI)
    predict = predictor(teacher, None if cond is None else cond.repeat_interleave(num_samples, 0))
    for t_B, s_B in zip(times[1:-1], times[2:], strict=True):
        t_N, s_N = (time_B.repeat_interleave(num_samples) for time_B in (t_B, s_B))
        x_BID = process.reverse(x_BID.flatten(0, 1), predict, t_N, s_N, split(rng, num_samples)).view_as(x_BID)
    return teacher_MS, x_BID


def bridged(
    process: Process,
    x_t: Int64[Tensor, "B D"],
    x_0_MI: Int64[Tensor, "M I"],
    positions: Positions,
    t: Float[Tensor, " B"],
    u: Float[Tensor, " B"],
    chosen_by: Float[Tensor, "M I"],
) -> Int64[Tensor, "B I D"]:
    """I samples of q(x_u | x_t, x_0) from each x_t, each of its positions having I values of x_0; by these uniforms."""
    x_BID = x_t[:, None].repeat(1, x_0_MI.shape[1], 1)
    t_MI, u_MI = (time_B[positions.example, None].expand_as(x_0_MI) for time_B in (t, u))
    x_t_MI = positions.gather(x_t)[:, None].expand_as(x_0_MI)
    x_BID[positions.example, :, positions.position] = process.bridge(x_t_MI, x_0_MI, t_MI, u_MI, chosen_by)
    return x_BID


def uniform_at(positions: Positions, rng: Rng, num_samples: int, num_positions: int) -> Float[Tensor, "M I"]:
    """One uniform a position and sample, which does not depend on what the positions are."""
    u_BID = uniform(rng, (positions.num_examples, num_samples, num_positions), positions.example.device)
    return u_BID[positions.example, :, positions.position]

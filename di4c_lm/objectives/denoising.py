"""Cross-entropy of x_0 given x_t: a denoiser of any process from data alone, such as the teachers of images."""

import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.core.settings import check, positive, section, setting, unit
from di4c_lm.data.batches import Batch, batch_rng, condition_of, noised
from di4c_lm.objectives.least_variance import LeastVarianceTimes
from di4c_lm.objectives.objective import Objective, ObjectiveSettings
from di4c_lm.processes.denoiser import Positions, predict_at
from di4c_lm.processes.masked import LogLinear, MaskedProcess, above
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import Rng, uniform


@section
class Denoising(ObjectiveSettings):
    """Cross-entropy of x_0 given x_t at all times, from data alone: how image teachers are trained."""

    times: Literal["antithetic", "iid", "bell", "least_variance"] = setting(
        "antithetic",
        "how t is sampled; antithetic: one t in each of G equal parts of (0, 1], G the global batch; iid: independently; bell: more often "
        "in the middle, by antithetic parts of a normal cut off at 0 and 1; least_variance: more often where the loss is large, each "
        "weighed by its density",
    )
    masks: Literal["independent", "complementary"] = setting(
        "independent",
        "complementary: each sequence counts twice, at t and, with the other positions masked, at 1 - t: twice the work of an update",
    )
    bell_mean: float = setting(0.5, "where t is likeliest, with times=bell")
    bell_std: float = setting(0.2, "deviation of t before it is cut off at 0 and 1, with times=bell")
    matmul_dtype: Literal["same", "bfloat16"] = setting(
        "same", "type in which matrices are multiplied, Muon's too; same: that of the weights"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unit(self, "bell_mean")
        positive(self, "bell_std")
        ok = self.masks == "independent" or self.times != "least_variance"
        check(ok, "masks", self.masks, "independent where times=least_variance")

    def unused(self) -> dict[str, str]:
        """The bell's shape where there is none."""
        names = () if self.times == "bell" else ("bell_mean", "bell_std")
        return dict.fromkeys(names, f"where times={self.times}")

    needs_teacher = False
    label: ClassVar[str] = "denoising"

    @property
    def antithetic(self) -> bool:
        """Whether batches are to be stratified."""
        return self.times != "iid"

    def check_masks(self, process: Process) -> None:
        """Raise `ValueError` where `process` has no masks, or at a rate at which those of t and of 1 - t are no complements."""
        linear = isinstance(process, MaskedProcess) and isinstance(process.schedule, LogLinear)
        check(
            linear or self.masks == "independent", "masks", self.masks, "independent where noise is not linear masking"
        )

    def sample_times(
        self, batch: Batch, rng: Rng, low: float, least_variance: LeastVarianceTimes | None = None
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """A time in (low, 1] for each example, in float64, and its density, where a uniform one's is 1."""
        u_B = 1 - batch.spread(uniform(rng, (len(batch.x),), batch.x.device))
        if least_variance is not None:
            return least_variance.sample(u_B)
        if self.times != "bell":
            return above(u_B, low), torch.ones_like(u_B)
        cut_2 = torch.special.ndtr((u_B.new_tensor([low, 1.0]) - self.bell_mean) / self.bell_std)
        z_B = torch.special.ndtri(cut_2[0] + u_B * (cut_2[1] - cut_2[0]))
        t_B = (self.bell_mean + self.bell_std * z_B).clamp(max=1)
        scale = self.bell_std * math.sqrt(2 * math.pi) * (cut_2[1] - cut_2[0])
        return t_B, torch.exp(-(z_B**2) / 2) / scale

    def build(
        self, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> "DenoisingObjective":
        """The module that the engine wraps. Raises `ValueError` where masks have no complement: without masks at a log-linear rate."""
        self.check_masks(process)
        return DenoisingObjective(self, student, process, seed=seed)


class DenoisingObjective(Objective):
    """-Σ_d log p(x_0^d | x_t) over the positions not known, t as `times` says above the process's lowest; least at the true marginals.

    Of a batch with strata the times are antithetic, one in each of G equal parts of (0, 1], or of as many equally likely parts of the bell,
    G the size of the global batch; of any other batch they are independent. (Bell-shaped times: arXiv 2605.13026. Complementary
    masks: MIRROR, arXiv 2511.18159.)
    """

    settings: Any

    def __init__(
        self, settings: Any, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(settings, student, process, seed=seed, teacher=teacher)
        if settings.times == "least_variance":
            self.adaptive = LeastVarianceTimes(process.min_time)

    @property
    def in_bfloat16(self) -> bool:
        """Whether all matrices, not the output head's alone, are multiplied in bfloat16, whatever the type of the weights."""
        return self.settings.matmul_dtype == "bfloat16"

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch of the cross-entropy in nats a position, a known one counting as 0; the metric is that of uniform times."""
        nats_B, t_B, density_B = self.cross_entropy(batch)
        length = batch.x.shape[1]
        return self.mean(nats_B, t_B, density_B) / length, {
            "cross_entropy": (nats_B.detach() / density_B).mean() / length
        }

    def mean(
        self, loss_B: Float[Tensor, " B"], t_B: Float[Tensor, " B"], density_B: Float[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Mean of the examples' losses; over uniform times where these are of least variance, which see the losses here."""
        if self.adaptive is None:
            return loss_B.mean()
        self.adaptive.record(t_B, loss_B.detach())
        return (loss_B / density_B).mean()

    def cross_entropy(self, batch: Batch) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
        """-Σ_d log p(x_0^d | x_t) of each example, in nats a sequence, its t and the density of t; 2B of them by complementary masks."""
        rng = batch_rng(self.seed, batch)
        cond_B = condition_of(batch, self.settings.label_drop, rng)
        t_B, density_B = self.settings.sample_times(batch, rng, self.process.min_time, self.adaptive)
        x_0, x_t = batch.x, noised(self.process, batch, t_B, rng)
        if self.settings.masks == "complementary":
            assert isinstance(self.process, MaskedProcess)  # as `build` checks
            # m(t) = (1 - ε) t: of t and this time exactly one masks a position
            other_B = (1 / self.process.schedule.mask_prob(torch.ones_like(t_B)) - t_B).clamp(max=1)
            kept = self.process.unknown(x_t)
            if batch.is_given is not None:
                kept |= batch.is_given
            others = torch.where(kept, x_0, self.process.mask_id)
            x_0, x_t, t_B = torch.cat([x_0, x_0]), torch.cat([x_t, others]), torch.cat([t_B, other_B])
            density_B, cond_B = density_B.repeat(2), None if cond_B is None else torch.cat([cond_B, cond_B])
        positions = Positions.where(self.process.unknown(x_t))
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            prediction = predict_at(self.student, x_t, t_B.float(), None, cond_B, positions.among(x_t.shape[1]))
        reading = prediction.read(positions, positions.gather(x_0)[:, None], chunk_rows=self.settings.chunk_rows)
        return -reading.joint[:, 0], t_B, density_B

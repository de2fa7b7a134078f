"""Di4C (Hayakawa et al. 2025, section 3): distilling a many-step teacher into a mixture by four terms, on any process."""

import dataclasses
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import at_least, section, setting, unit
from di4c_lm.data.batches import Batch, batch_rng, condition_of, noised
from di4c_lm.losses.di4c import Alpha, alpha, consistency_term, correlation, data_term, distillation_term
from di4c_lm.losses.reading import Reading, sample_rows
from di4c_lm.mixtures.base import Latents
from di4c_lm.objectives.objective import MixtureObjectiveSettings, Objective
from di4c_lm.objectives.teacher_step import TeacherStep, bridged, step_down, uniform_at
from di4c_lm.processes.denoiser import Positions, predict_at, widest
from di4c_lm.processes.masked import Times
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import Rng, split, uniform


@section
class Di4C(MixtureObjectiveSettings):
    """Di4C's four terms: distillation, consistency, and the correlations of data and student (Hayakawa et al. 2025, section 3)."""

    consistency_samples: int = setting(
        0, "samples of x_u and x̂ for each x_t in the consistency term; 0: L, as in the paper"
    )
    alpha: Alpha = setting("sigmoid", "schedule over t of the weight α of the data's correlation term")
    alpha_scale: float = setting(0.1, "factor on α")
    marginal_weight: float = setting(1.0, "weight of KL(teacher || student's marginal)")
    consistency_weight: float = setting(1.0, "weight of the consistency term")
    distil_weight: float = setting(1.0, "weight of the distillation term")
    control_variate: Literal["both", "data", "consistency", "none"] = setting(
        "both", "which terms subtract the control variate; a term without it is the plain log-likelihood"
    )
    delta: float = setting(0.02, "δ: at times below it the distillation term replaces the consistency term")
    distil_inputs: Literal["shared", "own"] = setting(
        "shared",
        "shared: distil at x_t where t < delta; own: always, each λ at an x of its own near the lowest time (CIFAR-10's run)",
    )
    distil_samples: int = setting(
        0, "samples of λ, chosen of the L, that distil at inputs of their own; 0: L, as in the paper"
    )
    positions: Literal["masked", "all"] = setting("masked", "positions that enter the loss; all: also the visible ones")
    matmul_dtype: Literal["same", "bfloat16"] = setting(
        "same", "type in which the student's output head multiplies; same: that of the network"
    )
    times: Times = setting(Times(), "how the time t of x_t is sampled")
    teacher_step: TeacherStep = setting(TeacherStep(), "how the teacher steps from x_t to x_u")

    needs_marginals: ClassVar[bool] = True
    num_distributions: ClassVar[int] = 2
    label: ClassVar[str] = "distil"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "consistency_samples", "distil_samples", "alpha_scale")
        at_least(self, 0, "marginal_weight", "consistency_weight", "distil_weight")
        unit(self, "delta")

    def unused(self) -> dict[str, str]:
        """How many steps a teacher takes, where there is none."""
        return {"teacher_step.steps": "where init=scratch"} if self.init == "scratch" else {}

    @property
    def num_samples(self) -> int:
        """I, samples of x_u, and of x̂ from each, for one x_t."""
        return self.consistency_samples or self.num_lambdas

    def build(
        self, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> "Di4CObjective":
        """The module that the engine wraps."""
        return Di4CObjective(self, student, process, seed=seed, teacher=teacher)


class Di4CObjective(Objective):
    """The weighted sum of Di4C's terms, for any batch.

    Without a teacher, which is ours and not the paper's, x_0 stands for what one would say: x_u is sampled from q(x_u | x_t, x_0), and a KL
    from the teacher's distribution becomes -log p(x_0). Over data that is the loss of a teacher that knows q(x_0 | x_t), up to a constant.
    """

    settings: Di4C

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch of the weighted terms (nats a sequence), and the mean of each."""
        rng, x_0, settings = batch_rng(self.seed, batch), batch.x, self.settings
        cond_B = condition_of(batch, settings.label_drop, rng)
        t_B, u_B = self.times(len(x_0), rng, x_0.device)
        x_t = noised(self.process, batch, t_B, rng)
        positions = Positions.where(self.in_loss(x_t))
        # Where the distillation term stands in place of consistency.
        low_B = (t_B - self.process.min_time < settings.delta) & (settings.distil_inputs == "shared")
        times, count, chunk_rows = settings.teacher_step.between(t_B, u_B), settings.num_samples, settings.chunk_rows
        targets_MT = positions.gather(x_0)[:, None]
        if self.teacher is None:
            teacher_MS = self.certain(targets_MT)
            chosen_by = uniform_at(positions, rng, count, x_t.shape[1])
            x_u = bridged(self.process, x_t, targets_MT.expand(-1, count), positions, t_B, u_B, chosen_by)
        else:
            teacher_MS, x_u = step_down(
                self.teacher, self.process, x_t, positions, times, count, rng, cond_B, chunk_rows=chunk_rows
            )
        distributions = [teacher_MS]
        if settings.consistency_weight > 0:
            found = self.consistency_target(x_0, x_u, u_B, positions, teacher_MS, ~low_B, rng, cond_B)
            targets_MT = torch.cat([targets_MT, found[0]], 1)
            distributions.append(found[1])
        lam = self.student.training_latents(len(x_0), settings.num_lambdas, rng, x_0.device)
        reading = predict_at(self.student, x_t, t_B.float(), lam, cond_B, positions.among(x_t.shape[1])).read(
            positions,
            targets_MT,
            distributions,
            components=settings.distil_weight > 0 and bool(low_B.any()),
            chunk_rows=chunk_rows,
        )
        distil_at_B = low_B
        if settings.distil_weight > 0 and settings.distil_inputs == "own":
            reading = dataclasses.replace(reading, component_divergence=self.own_distillation(x_0, lam, rng, cond_B))
            distil_at_B = torch.ones_like(low_B)
        terms = weighted_terms(settings, reading, t_B, consistency_at=~low_B, distil_at=distil_at_B)
        metrics = {
            "distil": terms["distil"],
            "consistency": terms["consistency"],
            "data_corr": correlation(reading.joint[:, 0], reading.product[:, 0]),
            "data_marginal": reading.divergence[:, 0],
        }
        loss = (terms["data"] + terms["consistency"] + terms["distil"]).mean()
        return loss, {name: value.detach().mean() for name, value in metrics.items()}

    def times(
        self, num_examples: int, rng: Rng, device: torch.device
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(t, u), one pair an example."""
        step, settings = self.settings.teacher_step, self.settings
        floor = self.process.min_time
        return step.sample_times(settings.times, num_examples, rng, delta=settings.delta, floor=floor, device=device)

    def certain(self, x_0: Int64[Tensor, "M 1"]) -> Float[Tensor, "M S"]:
        """The distributions that know x_0, which stand for a teacher's where there is none."""
        weight = next(self.student.parameters())
        found_MS = weight.new_zeros(len(x_0), self.student.output_head().num_states, dtype=widest(weight.dtype))
        return found_MS.scatter_(1, x_0, 1.0)

    def in_loss(self, x_t: Int64[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """What enters the loss: where x_0 is not known given x_t, or all."""
        masked = self.settings.positions == "masked"
        return self.process.unknown(x_t) if masked else torch.ones_like(x_t, dtype=torch.bool)

    @torch.no_grad()
    def consistency_target(
        self,
        x_0: Int64[Tensor, "B D"],
        x_u: Int64[Tensor, "B I D"],
        u: Float[Tensor, " B"],
        positions: Positions,
        teacher_MS: Float[Tensor, "M S"],
        wanted: Bool[Tensor, " B"],
        rng: Rng,
        cond: Int64[Tensor, "B *each"] | None = None,
    ) -> tuple[Int64[Tensor, "M I"], Float[Tensor, "M S"]]:
        """x̂_i ~ student(x_u^i; fresh λ) and the mean of its distributions over i, for the examples `wanted`.

        Every rank calls the student once, on one example where none is wanted, since under ZeRO-3 a call is a collective. The positions of
        the others get placeholders, x_0 and the teacher's marginals, whose terms have weight 0.
        """
        num_samples = x_u.shape[1]
        lam = self.student.sample_latents(len(x_u), num_samples, rng, x_u.device)
        u_MI = uniform_at(positions, rng, num_samples, x_u.shape[2])
        rows_B = wanted.nonzero().squeeze(1)
        rows_B = rows_B if len(rows_B) else wanted.new_zeros(1, dtype=torch.int64)
        u_N = u[rows_B].repeat_interleave(num_samples)
        cond_N = None if cond is None else cond[rows_B].repeat_interleave(num_samples, 0)
        was_training = self.student.training
        self.student.eval()
        x_u_ND = x_u[rows_B].flatten(0, 1)
        lam_N = lam[rows_B].one_a_row()
        prediction = predict_at(self.student, x_u_ND, u_N.float(), lam_N, cond_N, self.in_loss(x_u_ND))
        self.student.train(was_training)

        row_of_B = torch.full_like(u, -1, dtype=torch.int64)
        row_of_B[rows_B] = torch.arange(len(rows_B), device=rows_B.device)
        wanted_M1 = wanted[positions.example, None]
        x_u_MI = x_u[positions.example, :, positions.position]
        asked_MI = wanted_M1 & self.in_loss(x_u_MI)
        into_N, sample_N = asked_MI.nonzero(as_tuple=True)
        row_N, position_N = row_of_B[positions.example[into_N]] * num_samples + sample_N, positions.position[into_N]
        marginal_MS = torch.zeros_like(teacher_MS)
        samples_MI = torch.where(wanted_M1, x_u_MI, positions.gather(x_0)[:, None])
        samples_MI[into_N, sample_N] = sample_rows(
            prediction.features[row_N, 0, position_N],
            position_N,
            prediction.output_head,
            u_MI[into_N, sample_N],
            marginal_MS,
            into_N,
            1 / num_samples,
            chunk_rows=self.settings.chunk_rows,
        )
        known_M, known_I = (wanted_M1 & ~asked_MI).nonzero(as_tuple=True)
        certain = torch.full_like(known_M, 1 / num_samples, dtype=marginal_MS.dtype)
        marginal_MS.index_put_((known_M, x_u_MI[known_M, known_I]), certain, accumulate=True)
        return samples_MI, torch.where(wanted_M1, marginal_MS, teacher_MS)

    def own_distillation(
        self, x_0: Int64[Tensor, "B D"], lam: Latents, rng: Rng, cond: Int64[Tensor, "B *each"] | None = None
    ) -> Float[Tensor, " B"]:
        """mean_j Σ_d KL(teacher^d ‖ ℓ_j^d), each λ_j at an x of its own, near the process's lowest time (section F.1).

        With `distil_samples` the mean of so many, none of the L likelier to be among them than another.
        """
        if 0 < self.settings.distil_samples < lam.num_lambdas:
            order_BL = uniform(rng, tuple(lam.value.shape[:2]), x_0.device).argsort(1)
            lam = lam.of_each(order_BL[:, : self.settings.distil_samples])
        num_lambdas, chunk_rows = lam.num_lambdas, self.settings.chunk_rows
        rows_rng, x_0 = split(rng, num_lambdas), x_0.repeat_interleave(num_lambdas, 0)
        cond_N = None if cond is None else cond.repeat_interleave(num_lambdas, 0)
        lowest_N, share_N = uniform(rows_rng, (len(x_0), 2), x_0.device).unbind(1)
        t_N = self.process.min_time + torch.where(lowest_N < 0.5, 0.0, self.settings.delta * share_N)
        x_t = self.process.corrupt(x_0, t_N, rows_rng)
        positions = Positions.where(self.in_loss(x_t))
        if self.teacher is None:
            teacher_MS = self.certain(positions.gather(x_0)[:, None])
        else:
            with torch.no_grad():
                teacher_lam = self.teacher.sample_latents(len(x_t), 1, rows_rng, x_t.device)
                teacher = self.teacher(x_t, t_N.float(), teacher_lam, cond_N)
                teacher_MS = teacher.marginals(positions, chunk_rows=chunk_rows)
        none_M0 = positions.gather(x_t)[:, None][:, :0]
        prediction = self.student(x_t, t_N.float(), lam.one_a_row(), cond_N)
        reading = prediction.read(positions, none_M0, (teacher_MS,), chunk_rows=chunk_rows)
        return reading.divergence[:, 0].view(-1, num_lambdas).mean(1)


def weighted_terms(
    settings: Di4C,
    reading: Reading,
    t: Float[Tensor, " B"],
    *,
    consistency_at: Bool[Tensor, " B"],
    distil_at: Bool[Tensor, " B"],
) -> dict[str, Float[Tensor, " B"]]:
    """The terms `data`, `consistency` and `distil` of each example with their weights, 0 where an example has no part in one."""
    none_B = torch.zeros_like(reading.joint[:, 0])
    terms = {
        "data": data_term(
            reading,
            alpha(settings.alpha, settings.alpha_scale, t),
            marginal_weight=settings.marginal_weight,
            control_variate=settings.control_variate in ("both", "data"),
        ),
        "consistency": none_B,
        "distil": settings.distil_weight * torch.where(distil_at, distillation_term(reading), none_B),
    }
    if settings.consistency_weight > 0:
        consistency_B = consistency_term(reading, control_variate=settings.control_variate in ("both", "consistency"))
        terms["consistency"] = settings.consistency_weight * torch.where(consistency_at, consistency_B, none_B)
    return terms

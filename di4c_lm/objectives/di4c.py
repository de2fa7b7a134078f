"""The Di4C objective. An objective turns a batch into a loss; the engine wraps it, and so sees every use of the student's parameters."""

from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from di4c_lm.data.batch import Batch, batch_rng, classes_of
from di4c_lm.losses.di4c import Terms, UpperSide, di4c_terms
from di4c_lm.losses.positions import Positions
from di4c_lm.losses.reading import mixture_marginals, read_mixture, sample_rows
from di4c_lm.losses.weights import alpha
from di4c_lm.objectives.external import output_head_parameters
from di4c_lm.objectives.settings import Di4CConfig
from di4c_lm.objectives.teacher_step import TeacherHop, at_sites, latents
from di4c_lm.processes.denoiser import Denoiser, Prediction
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import Rng, split, uniform
from di4c_lm.processes.times import above, hop_down, sample_times, times_and_hops


class Di4CObjective(nn.Module):
    """Di4C (Hayakawa et al. 2025, section 3) on any process, for any batch, each example with its own t.

    The teacher is held outside the module's parameters: it is neither optimised, saved nor partitioned.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, process: Process, config: Di4CConfig, *, seed: int
    ) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher.eval().requires_grad_(False),)
        self.process = process
        self.config = config
        self.seed = seed
        self._whole = config

    def begin_update(self, number: int) -> None:
        """Told the number of the update that comes, from 0: in the first `lead_steps` the datapoint's likelihood is alone."""
        self.config = _alone(self._whole) if number < self._whole.lead_steps else self._whole

    @property
    def teacher(self) -> Denoiser:
        """The frozen network that is distilled."""
        return cast(Denoiser, self._teacher[0])

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch of the weighted terms (nats a sequence), and the mean of each term."""
        rng = batch_rng(self.seed, batch)
        config = self.config
        cond_B = classes_of(batch, config.label_drop, rng)
        t_B, u_B = self._times(len(batch.x), rng, batch.x.device)
        x_t = self.process.corrupt(batch.x, t_B, rng)
        positions = Positions.where(self._in_loss(x_t))
        own = config.distil_inputs == "own"
        low_B = torch.zeros_like(t_B, dtype=torch.bool) if own else t_B - self.process.min_time < config.delta
        teacher_MS = upper = None
        if self._asks_the_teacher:
            teacher_MS, x_u, u_B = self._teacher_side(x_t, positions, t_B, rng, u_B, cond_B)
            upper = self._upper_side(x_u, u_B, positions, teacher_MS, positions.gather(batch.x), ~low_B, rng, cond_B)
        lam = latents(cast(Denoiser, self.student), x_t, config.num_lambdas, rng)
        prediction: Prediction = self.student(x_t, t_B.float(), lam, cond_B)
        terms = di4c_terms(
            prediction.features[positions.example, :, positions.position],
            prediction.output_head,
            positions,
            positions.gather(batch.x),
            teacher_MS,
            upper,
            chain=prediction.chain,
            distil=teacher_MS is not None and bool(low_B.any()) and config.distil_weight > 0,
            chunk_rows=config.chunk_rows,
        )
        if own and config.distil_weight > 0:
            terms = replace(terms, distil=self._own_distil(batch.x, lam, cond_B, rng))
        return self._weigh(terms, t_B, low_B)

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """Parameters that are used outside the module that owns them: the output head's, inside the loss."""
        return output_head_parameters(self, self.student)

    def _in_loss(self, x_t: Int64[Tensor, "..."]) -> Bool[Tensor, "..."]:
        return (
            self.process.unknown(x_t) if self.config.positions == "masked" else torch.ones_like(x_t, dtype=torch.bool)
        )

    @property
    def _asks_the_teacher(self) -> bool:
        """Whether a term with a weight looks at the teacher's law at x_t: without one only data is learned from."""
        config = self.config
        shared = config.distil_weight if config.distil_inputs == "shared" else 0
        return config.marginal_weight + config.consistency_weight + shared > 0

    @property
    def num_samples(self) -> int:
        """I, draws of x_u, and of x̂ from each, for one x_t."""
        return self.config.consistency_samples or self.config.num_lambdas

    def _times(
        self, num_examples: int, rng: Rng, device: torch.device
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"] | None]:
        """t, and u where the hop is drawn before t."""
        config, floor = self.config, self.process.min_time
        if config.times.law == "above_hop":
            return times_and_hops(
                config.times, config.hop, num_examples, rng, delta=config.delta, floor=floor, device=device
            )
        return above(sample_times(config.times, num_examples, rng, delta=config.delta, device=device), floor), None

    @torch.no_grad()
    def _teacher_side(
        self,
        x_t: Int64[Tensor, "B D"],
        positions: Positions,
        t_B: Float[Tensor, " B"],
        rng: Rng,
        u_B: Float[Tensor, " B"] | None = None,
        cond_B: Int64[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "M S"], Int64[Tensor, "B I D"], Float[Tensor, " B"]]:
        """The teacher's law at the positions, x_u^i ~ teacher from x_t for each of I rows, and u (drawn here unless given)."""
        hop = self.config.hop
        u_B = hop_down(hop, t_B, rng, floor=self.process.min_time) if u_B is None else u_B
        times_SB = [t_B + (u_B - t_B) * k / hop.teacher_steps for k in range(hop.teacher_steps + 1)]
        teacher_hop = TeacherHop(
            teacher=self.teacher,
            process=self.process,
            num_samples=self.num_samples,
            chunk_rows=self.config.chunk_rows,
        )
        return *teacher_hop(x_t, positions, times_SB, rng, cond_B), u_B

    def _own_distil(
        self, x_0: Int64[Tensor, "B D"], lam: Tensor | None, cond_B: Int64[Tensor, " B"] | None, rng: Rng
    ) -> Float[Tensor, " B"]:
        """mean_j Σ_d KL(teacher^d ‖ ℓ_j^d), each λ_j at an x of its own, near the process's lowest time."""
        num_lambdas = 1 if lam is None else lam.shape[1]
        rows_rng = split(rng, num_lambdas)
        x_0, lam_N = x_0.repeat_interleave(num_lambdas, 0), None if lam is None else lam.flatten(0, 1)[:, None]
        cond_N = None if cond_B is None else cond_B.repeat_interleave(num_lambdas)
        lowest_N, share_N = uniform(rows_rng, (len(x_0), 2), x_0.device).unbind(1)
        t_N = self.process.min_time + torch.where(lowest_N < 0.5, 0.0, self.config.delta * share_N)
        x_t = self.process.corrupt(x_0, t_N, rows_rng)
        positions = Positions.where(self._in_loss(x_t))
        with torch.no_grad():
            teacher = self.teacher(x_t, t_N.float(), latents(self.teacher, x_t, 1, rows_rng), cond_N)
            features_MLH = teacher.features[positions.example, :, positions.position]
            law_MS = mixture_marginals(
                features_MLH, positions.position, teacher.output_head, chunk_rows=self.config.chunk_rows
            )
        prediction: Prediction = self.student(x_t, t_N.float(), lam_N, cond_N)
        reading = read_mixture(
            prediction.features[positions.example, :, positions.position],
            positions.position,
            prediction.output_head,
            positions.gather(x_t)[:, None][:, :0],
            (law_MS,),
            chunk_rows=self.config.chunk_rows,
        )
        return positions.per_example(reading.divergence[:, 0]).view(-1, num_lambdas).mean(1)

    @torch.no_grad()
    def _upper_side(
        self,
        x_u: Int64[Tensor, "B I D"],
        u_B: Float[Tensor, " B"],
        positions: Positions,
        teacher_MS: Float[Tensor, "M S"],
        x_0: Int64[Tensor, " M"],
        wanted_B: Bool[Tensor, " B"],
        rng: Rng,
        cond_B: Int64[Tensor, " B"] | None = None,
    ) -> UpperSide | None:
        """x̂_i ~ student(x_u^i; fresh λ) and the marginal over i, at the positions of the examples `wanted_B`.

        Every rank calls the student once, on one example where none is wanted, since under ZeRO-3 a call is a collective. Positions of the
        others get placeholders, whose terms have weight 0.
        """
        if self.config.consistency_weight == 0:
            return None
        num_samples = self.num_samples
        lam = latents(cast(Denoiser, self.student), x_u, num_samples, rng)
        u_MI = at_sites(positions, rng, num_samples, x_u.shape[2])
        rows_B = wanted_B.nonzero().squeeze(1)
        rows_B = rows_B if len(rows_B) else wanted_B.new_zeros(1, dtype=torch.int64)
        x_ND = x_u[rows_B].flatten(0, 1)
        lam_N = None if lam is None else lam[rows_B].flatten(0, 1)[:, None]
        cond_N = None if cond_B is None else cond_B[rows_B].repeat_interleave(num_samples)
        was_training = self.student.training
        self.student.eval()
        prediction: Prediction = self.student(x_ND, u_B[rows_B].repeat_interleave(num_samples).float(), lam_N, cond_N)
        self.student.train(was_training)

        row_of_B = torch.full_like(u_B, -1, dtype=torch.int64)
        row_of_B[rows_B] = torch.arange(len(rows_B), device=rows_B.device)
        active_M = wanted_B[positions.example]
        visible_MI = x_u[positions.example, :, positions.position]
        open_MI = active_M[:, None] & self._in_loss(visible_MI)
        site_N, sample_N = open_MI.nonzero(as_tuple=True)
        position_N = positions.position[site_N]
        marginal_MS = torch.zeros_like(teacher_MS)
        features_NH = prediction.features[row_of_B[positions.example[site_N]] * num_samples + sample_N, 0, position_N]
        drawn_N = sample_rows(
            features_NH,
            position_N,
            prediction.output_head,
            u_MI[site_N, sample_N],
            marginal_MS,
            site_N,
            1 / num_samples,
            chunk_rows=self.config.chunk_rows,
        )
        samples_MI = torch.where(active_M[:, None], visible_MI, x_0[:, None])
        samples_MI[site_N, sample_N] = drawn_N
        closed_M, closed_L = (active_M[:, None] & ~open_MI).nonzero(as_tuple=True)
        certain = torch.full_like(closed_M, 1 / num_samples, dtype=marginal_MS.dtype)
        marginal_MS.index_put_((closed_M, visible_MI[closed_M, closed_L]), certain, accumulate=True)
        marginal_MS[~active_M] = teacher_MS[~active_M]
        return UpperSide(samples=samples_MI, marginal=marginal_MS)

    def _weigh(
        self, terms: Terms, t_B: Float[Tensor, " B"], low_B: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        config = self.config
        data_corr_B = terms.data_joint + (terms.data_product if config.control_variate_data else 0)
        data_B = config.data_weight * alpha(config.alpha, config.alpha_scale, t_B) * data_corr_B
        marginal_B = config.marginal_weight * terms.data_marginal
        consistency_B = terms.consistency_joint
        if config.control_variate_consistency:
            consistency_B = consistency_B + terms.consistency_product + terms.consistency_marginal
        consistency_B = config.consistency_weight * torch.where(low_B, 0.0, consistency_B)
        gate = 1 / config.delta if config.delta_weight and config.delta > 0 else 1.0
        always = config.distil_inputs == "own"
        distil_B = config.distil_weight * gate * torch.where(low_B | always, terms.distil, 0.0)
        loss = (data_B + marginal_B + consistency_B + distil_B).mean()
        metrics = {
            "distil": distil_B,
            "consistency": consistency_B,
            "data_corr": terms.data_corr,
            "data_marginal": terms.data_marginal,
        }
        return loss, {name: value.detach().mean() for name, value in metrics.items()}


def _alone(config: Di4CConfig) -> Di4CConfig:
    """The likelihood of the datapoint, without what holds the marginals to the teacher's."""
    return replace(config, control_variate_data=False, marginal_weight=0.0, consistency_weight=0.0, distil_weight=0.0)

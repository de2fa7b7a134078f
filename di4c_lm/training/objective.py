"""Objectives: modules that turn a batch into a loss. The engine wraps one, so that it sees every use of the student's parameters."""

from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from di4c_lm.config import Di4CConfig
from di4c_lm.losses.di4c import Sites, Terms, UpperSide, di4c_terms
from di4c_lm.losses.mdlm import log_linear_weight, mdlm_bound
from di4c_lm.losses.mixture import draw_components, mean_law, row_chunks
from di4c_lm.losses.weights import alpha
from di4c_lm.models.readout import Denoiser, Prediction
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import Rng, split, uniform
from di4c_lm.processes.times import hop_down, sample_times
from di4c_lm.training.batch import Batch, StratifiedBatch, batch_rng

_DRAW_ROWS = 256


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
        sites = Sites.where(x_t == self.process.mask_id)
        prediction: Prediction = self.student(x_t, t_B.float())
        features_MH = prediction.features[sites.example, 0, sites.position]
        bound_B = mdlm_bound(
            features_MH,
            prediction.readout,
            sites,
            sites.gather(batch.x),
            log_linear_weight(t_B),
            chunk_rows=self.chunk_rows,
        )
        loss = bound_B.mean()
        return loss, {"bound_per_token": loss.detach() / batch.x.shape[1]}

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """Parameters that are used outside the module that owns them: the readout's, inside the loss."""
        return readout_parameters(self, self.student)


def readout_parameters(objective: nn.Module, student: nn.Module) -> list[tuple[nn.Module, nn.Parameter]]:
    """The parameters of `student`'s readout, used by `objective`, which takes it out of a `Prediction`."""
    parameters = cast(Denoiser, student).readout().parameters
    return [(objective, parameter) for parameter in parameters if isinstance(parameter, nn.Parameter)]


class Di4CObjective(nn.Module):
    """Di4C on a masked process (Hayakawa et al. 2025, section 3), for any batch, each example with its own t.

    The teacher is held outside the module's parameters: it is neither optimised, saved nor partitioned.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, process: MaskedProcess, config: Di4CConfig, *, seed: int
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
        """Mean over the batch of the weighted terms (nats a sequence), and the mean of each term."""
        rng = batch_rng(self.seed, batch)
        config = self.config
        t_B = sample_times(config.times, len(batch.x), rng, delta=config.delta, device=batch.x.device)
        x_t = self.process.corrupt(batch.x, t_B, rng)
        sites = Sites.where(self._in_loss(x_t))
        low_B = t_B < config.delta
        teacher_MS, x_u, u_B = self._teacher_side(x_t, sites, t_B, rng)
        upper = self._upper_side(x_u, u_B, sites, teacher_MS, sites.gather(batch.x), ~low_B, rng)
        lam = self._latents(cast(Denoiser, self.student), x_t, config.num_lambdas, rng)
        prediction: Prediction = self.student(x_t, t_B.float(), lam)
        terms = di4c_terms(
            prediction.features[sites.example, :, sites.position],
            prediction.readout,
            sites,
            sites.gather(batch.x),
            teacher_MS,
            upper,
            distil=bool(low_B.any()) and config.distil_weight > 0,
            chunk_rows=config.chunk_rows,
        )
        return self._weigh(terms, t_B, low_B)

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """Parameters that are used outside the module that owns them: the readout's, inside the loss."""
        return readout_parameters(self, self.student)

    def _in_loss(self, x_t: Int64[Tensor, "B D"]) -> Bool[Tensor, "B D"]:
        return (
            x_t == self.process.mask_id if self.config.positions == "masked" else torch.ones_like(x_t, dtype=torch.bool)
        )

    @property
    def num_samples(self) -> int:
        """I, draws of x_u, and of x̂ from each, for one x_t."""
        return self.config.consistency_samples or self.config.num_lambdas

    @staticmethod
    def _latents(network: Denoiser, x: Int64[Tensor, "B *D"], count: int, rng: Rng) -> Tensor | None:
        return network.sample_latents(len(x), count, lambda shape: uniform(rng, shape, x.device))

    @torch.no_grad()
    def _teacher_side(
        self, x_t: Int64[Tensor, "B D"], sites: Sites, t_B: Float[Tensor, " B"], rng: Rng
    ) -> tuple[Float[Tensor, "M S"], Int64[Tensor, "B I D"], Float[Tensor, " B"]]:
        """The teacher's law at the sites, x_u^i ~ teacher from x_t for each of I rows, and u."""
        num_samples, hop = self.num_samples, self.config.hop
        u_B = hop_down(hop, t_B, rng)
        times_SB = [t_B + (u_B - t_B) * k / hop.teacher_steps for k in range(hop.teacher_steps + 1)]
        law_MS, x_BID = self._first_step(x_t, sites, times_SB[0], times_SB[1], rng)
        for t_from_B, t_to_B in zip(times_SB[1:-1], times_SB[2:], strict=True):
            x_ND = x_BID.flatten(0, 1)
            t_N, s_N = (t.repeat_interleave(num_samples) for t in (t_from_B, t_to_B))
            rows_rng = split(rng, num_samples)
            x_BID = self._later_step(x_ND, t_N, s_N, rows_rng).view_as(x_BID)
        return law_MS, x_BID, u_B

    def _first_step(
        self, x_t: Int64[Tensor, "B D"], sites: Sites, t_B: Tensor, s_B: Tensor, rng: Rng
    ) -> tuple[Float[Tensor, "M S"], Int64[Tensor, "B I D"]]:
        """The teacher is run once a sequence; its law at each site is drawn from I times."""
        num_samples = self.num_samples
        lam = self._latents(self.teacher, x_t, num_samples, rng)
        prediction = self.teacher(x_t, t_B.float(), lam)
        features_MIH = prediction.features[sites.example, :, sites.position]
        u_MI = self._at_sites(sites, rng, x_t.shape[1])
        if lam is None:
            law_MS = mean_law(features_MIH, sites.position, prediction.readout, chunk_rows=self.config.chunk_rows)
            drawn_MI = torch.empty_like(u_MI, dtype=torch.int64)
            for rows in row_chunks(len(u_MI), _DRAW_ROWS):
                drawn_MI[rows] = sample_categorical(law_MS[rows], u_MI[rows])
        else:
            law_MS = torch.zeros(len(u_MI), prediction.readout.num_states, device=x_t.device)
            drawn_MI = self._draw_all(features_MIH, sites, prediction, u_MI, law_MS)
        keep_B = self.process.schedule.mask_prob(s_B) / self.process.schedule.mask_prob(t_B)
        hidden_MI = self._at_sites(sites, rng, x_t.shape[1]) < keep_B[sites.example, None]
        x_BID = x_t[:, None].repeat(1, num_samples, 1)
        masked_M1 = (sites.gather(x_t) == self.process.mask_id)[:, None]
        value_MI = torch.where(masked_M1 & ~hidden_MI, drawn_MI, sites.gather(x_t)[:, None])
        x_BID[sites.example, :, sites.position] = value_MI
        return law_MS, x_BID

    def _later_step(
        self, x_ND: Int64[Tensor, "N D"], t_N: Float[Tensor, " N"], s_N: Float[Tensor, " N"], rng: Rng
    ) -> Int64[Tensor, "N D"]:
        """A further teacher step from rows that have parted, as in ancestral sampling."""
        revealed_ND = self.process.reveal(x_ND, t_N, s_N, rng)
        latents = self.teacher.sample_latents(len(x_ND), 1, lambda shape: uniform(rng, shape, x_ND.device))
        prediction = self.teacher(x_ND, t_N.float(), latents)
        u_ND = uniform(rng, tuple(x_ND.shape), x_ND.device)
        row_M, position_M = revealed_ND.nonzero(as_tuple=True)
        drawn_M = torch.empty_like(row_M)
        for rows in row_chunks(len(row_M), _DRAW_ROWS):
            features_CH = prediction.features[row_M[rows], 0, position_M[rows]]
            p_CS = prediction.readout.logits(features_CH, position_M[rows]).softmax(1)
            drawn_M[rows] = sample_categorical(p_CS, u_ND[row_M[rows], position_M[rows]])
        x_s = x_ND.clone()
        x_s[row_M, position_M] = drawn_M
        return x_s

    def _at_sites(self, sites: Sites, rng: Rng, num_positions: int) -> Float[Tensor, "M I"]:
        u_BID = uniform(rng, (sites.num_examples, self.num_samples, num_positions), sites.example.device)
        return u_BID[sites.example, :, sites.position]

    def _draw_all(
        self, features_MIH: Tensor, sites: Sites, prediction: Prediction, u_MI: Tensor, law_MS: Tensor
    ) -> Int64[Tensor, "M I"]:
        """A state from each component at each site; the mean of the components' laws is added to `law_MS`."""
        num_sites, num_samples = u_MI.shape
        site_N = torch.arange(num_sites, device=u_MI.device).repeat_interleave(num_samples)
        return draw_components(
            features_MIH.flatten(0, 1),
            sites.position[site_N],
            prediction.readout,
            u_MI.flatten(),
            law_MS,
            site_N,
            1 / num_samples,
            chunk_rows=self.config.chunk_rows,
        ).view(num_sites, num_samples)

    @torch.no_grad()
    def _upper_side(
        self,
        x_u: Int64[Tensor, "B I D"],
        u_B: Float[Tensor, " B"],
        sites: Sites,
        teacher_MS: Float[Tensor, "M S"],
        x_0: Int64[Tensor, " M"],
        wanted_B: Bool[Tensor, " B"],
        rng: Rng,
    ) -> UpperSide | None:
        """x̂_i ~ student(x_u^i; fresh λ) and the marginal over i, at the sites of the examples `wanted_B`.

        Every rank calls the student once, on one example where none is wanted, since under ZeRO-3 a call is a collective. Sites of the
        others get placeholders, whose terms have weight 0.
        """
        if self.config.consistency_weight == 0:
            return None
        num_samples = self.num_samples
        lam = self._latents(cast(Denoiser, self.student), x_u, num_samples, rng)
        u_MI = self._at_sites(sites, rng, x_u.shape[2])
        rows_B = wanted_B.nonzero().squeeze(1)
        rows_B = rows_B if len(rows_B) else wanted_B.new_zeros(1, dtype=torch.int64)
        x_ND = x_u[rows_B].flatten(0, 1)
        latents = None if lam is None else lam[rows_B].flatten(0, 1)[:, None]
        was_training = self.student.training
        self.student.eval()
        prediction: Prediction = self.student(x_ND, u_B[rows_B].repeat_interleave(num_samples).float(), latents)
        self.student.train(was_training)

        row_of_B = torch.full_like(u_B, -1, dtype=torch.int64)
        row_of_B[rows_B] = torch.arange(len(rows_B), device=rows_B.device)
        active_M = wanted_B[sites.example]
        visible_MI = x_u[sites.example, :, sites.position]
        open_MI = active_M[:, None] & self._in_loss(visible_MI)
        site_N, sample_N = open_MI.nonzero(as_tuple=True)
        position_N = sites.position[site_N]
        marginal_MS = torch.zeros_like(teacher_MS)
        features_NH = prediction.features[row_of_B[sites.example[site_N]] * num_samples + sample_N, 0, position_N]
        drawn_N = draw_components(
            features_NH,
            position_N,
            prediction.readout,
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
        distil_B = config.distil_weight * gate * torch.where(low_B, terms.distil, 0.0)
        loss = (data_B + marginal_B + consistency_B + distil_B).mean()
        metrics = {
            "distil": distil_B,
            "consistency": consistency_B,
            "data_corr": data_corr_B,
            "data_marginal": terms.data_marginal,
        }
        return loss, {name: value.detach().mean() for name, value in metrics.items()}

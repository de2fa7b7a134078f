"""The teacher's side of Di4C: its law at x_t, and where it goes from there down to u."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from di4c_lm.losses.positions import Positions
from di4c_lm.losses.reading import mixture_marginals, sample_rows
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import Denoiser, Prediction, predictor, row_chunks, widest
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import Rng, split, uniform

_DRAW_ROWS = 256


def latents(network: Denoiser, x: Int64[Tensor, "B *D"], count: int, rng: Rng) -> Tensor | None:
    """`count` draws of λ for each row of `x`, or None for a network without λ."""
    return network.sample_latents(len(x), count, lambda shape: uniform(rng, shape, x.device))


def at_sites(positions: Positions, rng: Rng, num_samples: int, num_positions: int) -> Float[Tensor, "M I"]:
    """One uniform a site and sample, which does not depend on what the positions are."""
    u_BID = uniform(rng, (positions.num_examples, num_samples, num_positions), positions.example.device)
    return u_BID[positions.example, :, positions.position]


@dataclass(frozen=True, kw_only=True)
class TeacherHop:
    """`num_samples` draws x_u ~ teacher from each x_t."""

    teacher: Denoiser
    process: Process
    num_samples: int  # I
    chunk_rows: int = 0

    def __call__(
        self,
        x_t: Int64[Tensor, "B D"],
        positions: Positions,
        times: list[Float[Tensor, " B"]],
        rng: Rng,
        cond: Int64[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "M S"], Int64[Tensor, "B I D"]]:
        """The teacher's law at the positions of x_t, and x_u after a step from each of `times` (t first, u last) to the next."""
        num_samples = self.num_samples
        law_MS, x_BID = self._first_step(x_t, positions, times[0], times[1], rng, cond)
        predict = predictor(self.teacher, None if cond is None else cond.repeat_interleave(num_samples))
        for t_from_B, t_to_B in zip(times[1:-1], times[2:], strict=True):
            x_ND = x_BID.flatten(0, 1)
            t_N, s_N = (t.repeat_interleave(num_samples) for t in (t_from_B, t_to_B))
            x_BID = self.process.reverse(x_ND, predict, t_N, s_N, split(rng, num_samples)).view_as(x_BID)
        return law_MS, x_BID

    def _first_step(
        self, x_t: Int64[Tensor, "B D"], positions: Positions, t_B: Tensor, s_B: Tensor, rng: Rng, cond: Tensor | None
    ) -> tuple[Float[Tensor, "M S"], Int64[Tensor, "B I D"]]:
        """The teacher is run once a sequence; its law at each site is drawn from I times."""
        num_samples = self.num_samples
        lam = latents(self.teacher, x_t, num_samples, rng)
        prediction = self.teacher(x_t, t_B.float(), lam, cond)
        features_MIH = prediction.features[positions.example, :, positions.position]
        u_MI = at_sites(positions, rng, num_samples, x_t.shape[1])
        if lam is None:
            law_MS = mixture_marginals(
                features_MIH, positions.position, prediction.output_head, chunk_rows=self.chunk_rows
            )
            drawn_MI = torch.empty_like(u_MI, dtype=torch.int64)
            for rows in row_chunks(len(u_MI), _DRAW_ROWS):
                drawn_MI[rows] = sample_categorical(law_MS[rows], u_MI[rows])
        else:
            law_MS = features_MIH.new_zeros(
                len(u_MI), prediction.output_head.num_states, dtype=widest(features_MIH.dtype)
            )
            drawn_MI = self._draw_all(features_MIH, positions, prediction, u_MI, law_MS)
        x_BID = x_t[:, None].repeat(1, num_samples, 1)
        x_BID[positions.example, :, positions.position] = self.process.bridge(
            positions.gather(x_t)[:, None].expand_as(drawn_MI),
            drawn_MI,
            t_B[positions.example, None].expand_as(drawn_MI),
            s_B[positions.example, None].expand_as(drawn_MI),
            at_sites(positions, rng, num_samples, x_t.shape[1]),
        )
        return law_MS, x_BID

    def _draw_all(
        self, features_MIH: Tensor, positions: Positions, prediction: Prediction, u_MI: Tensor, law_MS: Tensor
    ) -> Int64[Tensor, "M I"]:
        """A state from each component at each site; the mean of the components' laws is added to `law_MS`."""
        num_sites, num_samples = u_MI.shape
        site_N = torch.arange(num_sites, device=u_MI.device).repeat_interleave(num_samples)
        return sample_rows(
            features_MIH.flatten(0, 1),
            positions.position[site_N],
            prediction.output_head,
            u_MI.flatten(),
            law_MS,
            site_N,
            1 / num_samples,
            chunk_rows=self.chunk_rows,
        ).view(num_sites, num_samples)

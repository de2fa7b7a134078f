"""Network calls of a trajectory: counted, with λ drawn anew or held, reused where nothing changed."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from di4c_lm.mixtures.latent import is_string, string_uniforms
from di4c_lm.processes.denoiser import Denoiser, Prediction
from di4c_lm.processes.rng import Rng, uniform


@dataclass(frozen=True)
class Call:
    """What the network says of R sequences; with `free`, the prediction without condition, the logits are guided."""

    conditional: Prediction
    free: Prediction | None = None
    guidance: float = 0.0

    def logits(self, row_N: Int64[Tensor, " N"], position_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """A fresh tensor of logits; guided, (1 + w) conditional - w free (Ho and Salimans 2022)."""
        logits_NS = _read(self.conditional, row_N, position_N)
        if self.free is None:
            return logits_NS
        return logits_NS.mul_(1 + self.guidance).sub_(_read(self.free, row_N, position_N).mul_(self.guidance))


def _read(prediction: Prediction, row_N: Tensor, position_N: Tensor) -> Tensor:
    return prediction.output_head.logits(prediction.features[row_N, 0, position_N], position_N)


class Calls:
    """A network as samplers call it, for the B sequences of one trajectory.

    `made` counts the sequences that were run; one of a guided call counts twice. A fresh λ is drawn for each sequence and call, or with
    `hold_latents` once for the trajectory. Where the network takes neither λ nor a time, a sequence that has not changed since its last
    call is not run again (the cache of MDLM; Sahoo et al. 2024).
    """

    def __init__(self, denoiser: Denoiser, *, hold_latents: bool = False, cond: Any = None) -> None:
        self._denoiser = denoiser
        self._hold_latents = hold_latents
        self.cond = cond
        self.made = 0
        self._lam: Tensor | None = None
        self._cached: tuple[Tensor, Tensor] | None = None  # sequences (B, D) and their features (B, 1, D, H)
        self._timeless = getattr(getattr(denoiser, "config", None), "time_conditioning", True) is False

    def latents(self, num_batch: int, rng: Rng, device: torch.device) -> Tensor | None:
        """λ of the next call, (B, 1, K), or None for a network without; one draw of `rng` unless λ is held."""
        if self._lam is None or not self._hold_latents:
            self._lam = self._denoiser.sample_latents(num_batch, 1, lambda shape: uniform(rng, shape, device))
        return self._lam

    def __call__(
        self,
        x_BD: Int64[Tensor, "B D"],
        t_B: Float64[Tensor, " B"],
        lam: Tensor | None,
        run_R: Int64[Tensor, " R"],
        *,
        guidance: float = 0.0,
    ) -> Call:
        """Predictions for the sequences `run_R`, in that order. Raises `ValueError` for guidance without a condition."""
        if guidance and self.cond is None:
            raise ValueError(f"guidance={guidance} needs a condition (cond), and none was given; text has none")
        cond = None if self.cond is None else self.cond[run_R]
        x_RD, t_R, lam_R = x_BD[run_R], t_B[run_R].float(), None if lam is None else lam[run_R]
        if lam is None and cond is None and self._timeless:
            return Call(self._reused(x_BD, t_B, run_R))
        self.made += len(run_R) * (2 if guidance else 1)
        if not guidance:
            return Call(self._denoiser(x_RD, t_R, lam_R, cond))
        if lam_R is not None and is_string(lam_R):
            return self._guided_string(x_RD, t_R, lam_R, cond, guidance)
        return Call(self._denoiser(x_RD, t_R, lam_R, cond), self._denoiser(x_RD, t_R, lam_R, None), guidance)

    def _guided_string(self, x_RD: Tensor, t_R: Tensor, lam_R: Tensor, cond: Any, guidance: float) -> Call:
        """The string of codes drawn from its law with the condition is told to both predictions: uniforms alone would make two strings."""
        codes = self._denoiser.sample_latents(len(x_RD), 0, lambda shape: torch.zeros(shape, device=x_RD.device))
        conditional, free = (self._denoiser(x_RD, t_R, codes, given) for given in (cond, None))
        chain = conditional.chain
        assert chain is not None
        drawn_RNW = chain.sample(string_uniforms(lam_R, chain.num_windows))
        choice_RND = drawn_RNW[:, :, chain.window_of(torch.arange(x_RD.shape[1], device=x_RD.device))]
        return Call(conditional.under(choice_RND), free.under(choice_RND), guidance)

    def _reused(self, x_BD: Tensor, t_B: Tensor, run_R: Tensor) -> Prediction:
        if self._cached is None or self._cached[0].shape != x_BD.shape:
            stale_R = run_R
        else:
            stale_R = run_R[(self._cached[0][run_R] != x_BD[run_R]).any(1)]
        if len(stale_R):
            self.made += len(stale_R)
            x_RD = x_BD[stale_R]
            # All equal, as at the start: run one, and count them all, so that NFE do not depend on the batch.
            distinct_R = stale_R[:1] if bool((x_RD == x_RD[0]).all()) else stale_R
            features = self._denoiser(x_BD[distinct_R], t_B[distinct_R].float(), None, None).features
            if self._cached is None or self._cached[0].shape != x_BD.shape:
                unseen_BD = torch.full_like(x_BD, -1)
                self._cached = unseen_BD, features.new_empty(len(x_BD), *features.shape[1:])
            seen_BD, kept = self._cached
            seen_BD[stale_R], kept[stale_R] = x_RD, features
        assert self._cached is not None
        return Prediction(self._cached[1][run_R], self._denoiser.output_head())

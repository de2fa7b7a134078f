"""λ for an evaluation: as many draws as stand for the mixture, and the mixture with λ averaged out."""

from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from di4c_lm.domains.text.model import TextModel
from di4c_lm.mixtures.latent import Uniform
from di4c_lm.networks.dit import DIT
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import OutputHead, Prediction
from di4c_lm.processes.rng import KeyedRng, uniform


def num_components(model: TextModel, lambdas: int) -> int:
    """L: 1 without λ, the whole codebook where it is not larger than `lambdas` or λ is a string of codes, else `lambdas`."""
    latent = model.denoiser.latent
    if latent is None:
        return 1
    if latent.is_string:
        return latent.codebook_size
    return min(lambdas, latent.codebook_size) if latent.law == "codebook" else lambdas


def calls_of_all(model: TextModel, lambdas: int) -> int:
    """Network calls that the prediction under all of `num_components` takes: of token classes one."""
    latent = model.denoiser.latent
    return 1 if latent is not None and latent.path == "classes" else num_components(model, lambdas)


def predict(
    model: TextModel, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], rng: KeyedRng, *, lambdas: int
) -> Prediction:
    """The prediction of x_0 under `num_components` draws of λ, or under every code with their chain: features (B, L, D, H)."""
    lam = model.denoiser.sample_latents(
        len(x_t), _asked(model.denoiser, num_components(model, lambdas)), lambda shape: uniform(rng, shape, x_t.device)
    )
    return model.denoiser(x_t, t.float(), lam)


def _asked(denoiser: DIT, num_lambdas: int) -> int:
    """What `sample_latents` is asked for: 0, every code, where λ is a string of them."""
    return 0 if denoiser.latent is not None and denoiser.latent.is_string else num_lambdas


@final
class Averaged:
    """A mixture as a product of its marginals, for samplers: every position of every call is drawn under a λ of its own choice.

    That choice is among `lambdas` draws a sequence and call (all of a codebook that is not larger), so that a position's law is the mean
    over λ and positions are independent, but for the chance, one in `lambdas`, that two of them share a draw of a continuous λ.
    """

    def __init__(self, model: TextModel, *, lambdas: int, seed: int) -> None:
        self._denoiser: DIT = model.denoiser
        self._num_lambdas = num_components(model, lambdas)
        self._rng = torch.Generator().manual_seed(seed)
        self.num_states, self.mask_id = self._denoiser.num_states, self._denoiser.mask_id

    def sample_latents(self, num_batch: int, num_lambdas: int, uniform: Uniform) -> Tensor | None:
        """All the draws, (B, L, K), whatever `num_lambdas` asks for."""
        return self._denoiser.sample_latents(num_batch, _asked(self._denoiser, self._num_lambdas), uniform)

    def output_head(self) -> OutputHead:
        """That of the mixture."""
        return self._denoiser.output_head()

    def __call__(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Tensor | None = None, cond: Any = None
    ) -> Prediction:
        """Features (B, 1, D, H), each position's under the λ that it chose."""
        found = self._denoiser(x_t, t, lam)
        num_batch, num_lambdas, length, _ = found.features.shape
        if found.chain is None:
            choice_BD = torch.randint(num_lambdas, (num_batch, length), generator=self._rng).to(x_t.device)
        else:
            window_D = found.chain.window_of(torch.arange(length, device=x_t.device))
            weight_NL = found.chain.log_marginal[:, window_D].exp().flatten(0, 1)
            u_N = uniform(self._rng, (len(weight_NL),), x_t.device)
            choice_BD = sample_categorical(weight_NL, u_N).view(num_batch, length)
        return found.under(choice_BD[:, None])

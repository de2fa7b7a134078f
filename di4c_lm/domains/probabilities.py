"""What a model says of x_0 in one network call: log-probabilities at each position, and of whole sequences."""

from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import check
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng

_LAMBDAS = 64  # samples of λ that stand for a mixture which is not enumerated


class Probabilities:
    """p(x_0 | x_t) of a model that has a `denoiser` and a `process`; λ is averaged out."""

    denoiser: Any
    process: Any

    @torch.no_grad()
    def logits(
        self,
        x_t: Int64[Tensor, "B D"],
        t: float | Float[Tensor, " B"] | None = None,
        *,
        labels: Int64[Tensor, " B"] | None = None,
        num_lambdas: int = _LAMBDAS,
        seed: int = 0,
    ) -> Float[Tensor, "B D S"]:
        """log p(x_0^d = v | x_t) of every state at every position: normalised, float32, -inf where a state is impossible.

        The states of a visible position are certain. Of a mixture these are the marginals: exact where its λ is finite or summed out, else
        the mean over `num_lambdas` samples of λ, the same for each row.

        Args:
            x_t: a noised sequence a row; in text the tokenizer's mask token, whose id is `process.mask_id`, stands for what is hidden.
            t: its time in (0, 1]; absent, the share of masked positions. Of a model of uniform noise it has to be given.
            labels: classes of images, where the network takes them.
            num_lambdas: samples of λ to average over, where λ is not summed out.
            seed: random seed of these samples.

        Raises:
            ValueError: states, times or classes that there are not.
        """
        x_t, prediction = self._predict(x_t, t, labels, num_lambdas, seed)
        unknown_BD = self.process.unknown(x_t)
        positions = Positions.where(unknown_BD)
        p_BDS = torch.zeros(*x_t.shape, self.denoiser.num_states, device=x_t.device)
        p_BDS[positions.example, positions.position] = prediction.marginals(positions).float()
        at_known = (~unknown_BD).nonzero(as_tuple=True)
        p_BDS[(*at_known, x_t[at_known])] = 1.0
        return p_BDS.log_()

    @torch.no_grad()
    def log_prob(
        self,
        x_0: Int64[Tensor, "B D"],
        x_t: Int64[Tensor, "..."] | None = None,
        t: float | Float[Tensor, " B"] | None = None,
        *,
        labels: Int64[Tensor, " B"] | None = None,
        num_lambdas: int = _LAMBDAS,
        seed: int = 0,
    ) -> Float64[Tensor, " B"]:
        """log p(x_0 | x_t) in nats: of all positions that x_t hides jointly, as one network call samples them.

        Of a mixture it is log E_λ Π_d p(x_0^d | x_t; λ): exact where λ is finite or summed out, else over `num_lambdas` samples of λ, which
        makes it too small on average. The arguments are those of `logits`.

        Args:
            x_0: a clean sequence a row; positions that are masked in it are left out.
            x_t: what is known of it; absent, nothing is.

        Raises:
            ValueError: as `logits` does, for another shape than x_0's, and where x_t shows another state than x_0.
        """
        x_0 = x_0.to(self._device)
        if x_t is None:
            check(isinstance(self.process, MaskedProcess), "x_t", None, "given where the process does not mask")
            x_t = torch.full_like(x_0, self.process.mask_id)
        if x_t.shape != x_0.shape:
            raise ValueError(f"x_t must have the shape of x_0, {tuple(x_0.shape)}, got {tuple(x_t.shape)}")
        x_t, prediction = self._predict(x_t, t, labels, num_lambdas, seed)
        unknown_BD = self.process.unknown(x_t)
        if bool(((x_t != x_0) & ~unknown_BD).any()):
            raise ValueError("x_t must show no other states than x_0, got some that differ")
        chosen_BD = unknown_BD & (x_0 != self.process.mask_id) if self.masks else unknown_BD
        positions = Positions.where(chosen_BD)
        return prediction.read(positions, positions.gather(x_0)[:, None]).joint[:, 0].double()

    @property
    def _device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def has_marginals(self) -> bool:
        """Whether the distribution of one position, λ averaged out, is known: not of a mixture that samples positions in turn."""
        return not self.denoiser.has_latents or self.denoiser.settings.has_marginals

    @property
    def masks(self) -> bool:
        """Whether noise is masking, which x_t shows."""
        return isinstance(self.process, MaskedProcess)

    def _predict(
        self,
        x_t: Int64[Tensor, "B D"],
        t: float | Float[Tensor, " B"] | None,
        labels: Int64[Tensor, " B"] | None,
        num_lambdas: int,
        seed: int,
    ) -> tuple[Int64[Tensor, "B D"], Any]:
        """x_t on the network's device, and the prediction of x_0 from it."""
        check(num_lambdas >= 1, "num_lambdas", num_lambdas, "at least 1")
        device, denoiser = self._device, self.denoiser
        x_t, num_states = x_t.to(device), denoiser.num_states
        if x_t.numel() == 0 or int(x_t.min()) < 0 or int(x_t.max()) >= num_states:
            raise ValueError(f"x_t must hold states from 0 to {num_states - 1}, got shape {tuple(x_t.shape)}")
        if t is None:
            check(self.masks, "t", t, "given where the process does not mask")
            t = self.process.unknown(x_t).double().mean(1).clamp_min(1 / x_t.shape[1])
        t_B = torch.as_tensor(t, dtype=torch.float32, device=device).expand(len(x_t))
        low = float(t_B.min())
        check(low > 0 and float(t_B.max()) <= 1 and low >= self.process.min_time, "t", low, "a time in (0, 1]")
        rng = KeyedRng(seed, torch.zeros(len(x_t), dtype=torch.int64, device=device))  # one and the same λ for all rows
        lam = denoiser.training_latents(len(x_t), denoiser.num_components(num_lambdas), rng, device)
        cond = None if labels is None else labels.to(device)
        return x_t, denoiser(x_t, t_B, lam, cond)

"""λ as published (Hayakawa et al. 2025, section 5): one more token of a transformer, without a position, or shifts inside a U-Net.

Its embedding is a two-layer network of the sinusoid of 1000 λ, of a vector λ itself, or a row of a learned codebook.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.core.settings import at_least, check, positive, section, setting
from di4c_lm.mixtures.base import Latents, Mixture, MixtureSettings, code_numbers
from di4c_lm.networks.base import BlockStages, Network, Rows, sinusoid
from di4c_lm.processes.rng import Rng, uniform

_SINUSOID_DIM = 128
_PROJECTION_DIM = 512


@section
class TokenSettings(MixtureSettings):
    """One λ per sequence (a number, a vector or a code), as an extra token or, in a U-Net, as shifts: the paper's."""

    distribution: Literal["uniform", "stratified", "gaussian", "codebook"] = setting(
        "uniform",
        "distribution of λ; stratified: one sample in each of L equal parts of (0, 1); codebook: one of the learned vectors",
    )
    dim: int = setting(1, "dimensions of a Gaussian λ")
    codebook_size: int = setting(
        16, "learned vectors in a codebook; 0: objective.num_lambdas, so that all are enumerated"
    )
    init_scale: float = setting(0.02, "initial standard deviation of a codebook")
    inject_at: int = setting(
        0,
        "index of the block, of a U-Net the residual block, where λ enters; earlier ones run once for all λ; negative counts from the end",
    )
    freeze_backbone: bool = setting(False, "keep the teacher's weights and train λ's alone")

    def __post_init__(self) -> None:
        at_least(self, 0, "codebook_size")
        at_least(self, 1, "dim")
        positive(self, "init_scale")

    def unused(self) -> dict[str, str]:
        """Keys without effect, each with the reason."""
        reasons = {} if self.distribution == "gaussian" else {"dim": f"where distribution={self.distribution}"}
        if self.distribution != "codebook":
            reasons |= dict.fromkeys(("codebook_size", "init_scale"), f"where distribution={self.distribution}")
        return reasons

    def wrap(self, network: Network) -> "TokenMixture":
        """See `MixtureSettings.wrap`."""
        return TokenMixture(self, network)

    def fresh(self, kind: type[Network], model: Any, sizes: Any) -> Mixture:
        """See `MixtureSettings.fresh`; a U-Net takes the shifts in."""
        make: Any = kind  # each network takes sizes of its own
        return self.wrap(make(model, **sizes, **({"shifted": True} if kind.takes_shifts else {})))

    def sized(self, num_lambdas: int) -> "TokenSettings":
        """See `MixtureSettings.sized`."""
        return dataclasses.replace(self, codebook_size=self.codebook_size or num_lambdas)

    def check_num_lambdas(self, num_lambdas: int) -> None:
        """See `MixtureSettings.check_num_lambdas`."""
        super().check_num_lambdas(num_lambdas)
        size = self.codebook_size
        fits = self.distribution != "codebook" or size == 0 or num_lambdas <= size
        check(fits, "objective.num_lambdas", num_lambdas, f"at most mixture.codebook_size = {size}")


class TokenMixture(Mixture):
    """λ embedded, and its token; `latent_projection` as published, or `latent_codebook`."""

    codebook_std: ClassVar[float | None] = None  # at first; None: `init_scale`
    joins: ClassVar[bool] = True  # whether λ is a token, where the network is a transformer
    latent_codebook: nn.Embedding
    latent_projection: nn.Sequential
    settings: TokenSettings

    def __init__(self, settings: TokenSettings, network: Network) -> None:
        super().__init__(settings, network, shares_backbone=settings.freeze_backbone and not network.takes_shifts)
        is_codebook, size = settings.distribution == "codebook", settings.codebook_size
        check(not is_codebook or size >= 1, "mixture.codebook_size", size, "at least 1")
        self.inject_at = block_number(settings.inject_at, network)
        if is_codebook:
            width = network.config.width if network.takes_shifts else network.width
            self.latent_codebook = nn.Embedding(size, width)
            nn.init.normal_(self.latent_codebook.weight, std=self.codebook_std or settings.init_scale)
        elif network.takes_shifts:
            allowed = "uniform, stratified or codebook for a U-Net"
            check(settings.distribution != "gaussian", "mixture.distribution", settings.distribution, allowed)
        else:
            read = settings.dim if settings.distribution == "gaussian" else _SINUSOID_DIM
            self.latent_projection = nn.Sequential(
                nn.Linear(read, _PROJECTION_DIM), nn.GELU(), nn.Linear(_PROJECTION_DIM, network.width)
            )

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Latents:
        """See `Mixture.sample_latents`: (B, L, dim) floats, or (B, L, 1) numbers of codes; a codebook as large as L is enumerated."""
        chosen = self.settings
        check(num_lambdas >= 1, "num_lambdas", num_lambdas, "at least 1")
        if chosen.distribution == "codebook":
            return Latents(self._codes(num_batch, num_lambdas, rng, device))
        if chosen.distribution == "gaussian":
            u_BLK = uniform(rng, (num_batch, num_lambdas, chosen.dim), device)
            return Latents(torch.special.ndtri(u_BLK + 2.0**-54).float())
        u_BL1 = uniform(rng, (num_batch, num_lambdas, 1), device)
        if chosen.distribution == "stratified":  # one sample in each of L equal strata, the same marginal distribution
            stratum_L1 = torch.arange(num_lambdas, device=device)[:, None]
            u_BL1 = (stratum_L1 + u_BL1) / num_lambdas
        return Latents(u_BL1.float())

    def num_components(self, limit: int) -> int:
        """See `Mixture.num_components`."""
        return min(limit, self.settings.codebook_size) if self.settings.distribution == "codebook" else limit

    def rows_by_block(self, num_lambdas: int) -> list[float]:
        """See `Mixture.rows_by_block`: L from where λ enters on, less what the network makes once where a token joins."""
        late = self.network.config.num_blocks - self.inject_at
        shared = self.network.joined_share * (num_lambdas - 1) if self.joins else 0.0
        return [1.0] * self.inject_at + [num_lambdas - shared] + [float(num_lambdas)] * (late - 1)

    def forward(
        self, x_t: Tensor, t: Tensor, lam: Latents | None = None, cond: Tensor | None = None, **known: Any
    ) -> Rows:
        """See `Mixture.forward`."""
        if lam is None or not self.network.takes_shifts:
            return super().forward(x_t, t, lam, cond, **known)
        self.check(x_t, lam)
        shifts = self.embed(lam).unflatten(0, (-1, lam.num_lambdas))
        return self.network(x_t, t, shifts, cond, inject_at=self.inject_at)

    def drive(self, stages: BlockStages, lam: Latents) -> Rows:
        """See `Mixture.drive`."""
        stages.run(self.inject_at)
        stages.join(lam.num_lambdas, self.embed(lam))
        return Rows(stages.features().unflatten(0, (-1, lam.num_lambdas)), stages.output_head)

    def embed(self, lam: Latents) -> Float[Tensor, "N H"]:
        """The embedding of each λ; for a U-Net, which has its own layers for it, the sinusoid."""
        flat = lam.value.flatten(0, 1)
        if self.settings.distribution == "codebook":
            return self.latent_codebook(flat[:, 0])
        if self.network.takes_shifts:
            return sinusoid(1000.0 * flat[:, 0], self.network.config.width)
        features = flat if self.settings.distribution == "gaussian" else sinusoid(1000.0 * flat[:, 0], _SINUSOID_DIM)
        return self.latent_projection(features.to(next(self.latent_projection.parameters()).dtype))

    def owns(self, name: str) -> bool:
        """See `Mixture.owns`."""
        return super().owns(name) or (self.network.takes_shifts and self.network.is_shift(name))

    def _codes(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Tensor:
        size = self.settings.codebook_size
        check(num_lambdas <= size, "num_lambdas", num_lambdas, f"at most mixture.codebook_size = {size}")
        u_BL1 = uniform(rng, (num_batch, num_lambdas, 1), device)
        return code_numbers(size, num_batch, device) if num_lambdas == size else (u_BL1 * size).long()


def block_number(inject_at: int, network: Network) -> int:
    """The block before which λ enters, counted from 0. Raises `ValueError` for one that is none."""
    count = network.config.num_blocks
    check(-count <= inject_at < count, "mixture.inject_at", inject_at, f"a block below model.num_blocks = {count}")
    return inject_at % count

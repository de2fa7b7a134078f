"""λ by adaLN: it scales and shifts the norms of a transformer's blocks (after Peebles and Xie 2023)."""

import math

from torch import nn

from di4c_lm.core.settings import check, section, setting
from di4c_lm.mixtures.base import Latents
from di4c_lm.mixtures.token import TokenMixture, TokenSettings
from di4c_lm.networks.base import BlockStages, Network, Rows


@section
class AdaLNSettings(TokenSettings):
    """One λ per sequence (a number, a vector or a code), which scales and shifts the norms of the blocks."""

    init_scale: float = setting(
        0.02, "initial standard deviation of the scales and shifts, divided by the square root of the width"
    )

    def unused(self) -> dict[str, str]:
        """See `TokenSettings.unused`."""
        return {key: reason for key, reason in super().unused().items() if key != "init_scale"}

    def wrap(self, network: Network) -> "AdaLNMixture":
        """See `MixtureSettings.wrap`."""
        return AdaLNMixture(self, network)


class AdaLNMixture(TokenMixture):
    """λ embedded as for the token, and `latent_modulation`, shifts and scales of the two norms of each block from `inject_at` on."""

    codebook_std = 1.0
    joins = False

    def __init__(self, settings: AdaLNSettings, network: Network) -> None:
        check(not network.takes_shifts, "mixture", "adaln", "token, codes, class_chain or sequential for a U-Net")
        super().__init__(settings, network)
        self.is_late = self.inject_at > 0
        width, blocks = network.width, range(self.inject_at, network.config.num_blocks)
        self.latent_modulation = nn.ModuleDict({str(n): nn.Linear(width, 4 * width, bias=False) for n in blocks})
        for weight in self.latent_modulation.parameters():
            nn.init.normal_(weight, std=settings.init_scale / math.sqrt(width))

    def drive(self, stages: BlockStages, lam: Latents) -> Rows:
        """See `Mixture.drive`."""
        stages.run(self.inject_at)
        stages.repeat(lam.num_lambdas)
        embedded = self.embed(lam).to(stages.x.dtype)
        stages.run(shift_scale=lambda index: self.latent_modulation[str(index)](embedded))
        return Rows(stages.features().unflatten(0, (-1, lam.num_lambdas)), stages.output_head)

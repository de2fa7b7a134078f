"""Training a VQGAN without its GAN: reconstruction, commitment, and use of the codes."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.data.batches import Batch
from di4c_lm.networks.vqgan import VqGan


class VqganObjective(nn.Module):
    """L1 and squared error of the image, the codebook's loss, and `usage` times how far the codes are from being used equally.

    Images of `shape` (H, W, C) are the batch's states (B, C H W), channel by channel, of `levels` levels. The perceptual and the
    adversarial loss of Esser et al. 2021 are for large photographs; at a few pixels a code, the plain errors do. How equally codes are
    used is told by soft assignments, so that idle codes are drawn to the data: 1 less the entropy of their mean over log K.
    """

    def __init__(self, student: VqGan, shape: tuple[int, int, int], levels: int, *, usage: float = 0.1) -> None:
        super().__init__()
        self.student = student
        self.shape = shape
        self.levels = levels
        self.usage = usage

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of a batch, and its parts."""
        height, width, channels = self.shape
        image = batch.x.view(-1, channels, height, width).float() * (2 / (self.levels - 1)) - 1
        decoded, quantised = self.student(image)
        assert quantised.usage is not None  # in training mode
        squared = F.mse_loss(decoded, image)
        entropy = torch.special.entr(quantised.usage).sum() / math.log(len(quantised.usage))
        loss = F.l1_loss(decoded, image) + squared + quantised.loss + self.usage * (1 - entropy)
        metrics = {"squared_error": squared, "code_loss": quantised.loss, "code_entropy": entropy}
        return loss, {name: value.detach() for name, value in metrics.items()}


@torch.no_grad()
def start_codebook(vqgan: VqGan, planes: Float[Tensor, "N C R R"], generator: torch.Generator) -> None:
    """Replace the codes by vectors that the untrained encoder gives to places of images, chosen by `generator`.

    Raises `ValueError` for fewer places than codes.
    """
    vectors_NE = vqgan.quant_conv(vqgan.encoder(planes)).movedim(1, 3).flatten(0, 2)
    if len(vectors_NE) < vqgan.num_codes:
        raise ValueError(f"{len(planes)} images have {len(vectors_NE)} places, fewer than n_embed={vqgan.num_codes}")
    chosen_K = torch.randperm(len(vectors_NE), generator=generator)[: vqgan.num_codes]
    vqgan.quantize.embedding.weight.copy_(vectors_NE[chosen_K])

"""Small networks with weights everywhere, and inputs for them."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from di4c_lm.networks.decoder import Decoder, DecoderConfig
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.networks.maskgit import MaskGit, MaskGitConfig
from di4c_lm.networks.unet import UNet, UnetConfig

STATES, BLOCKS, LENGTH = 11, 3, 6  # of the DIT
CODES, CLASSES, CODE_LENGTH = 7, 3, 4  # of MaskGit
LEVELS, SHAPE = 9, (4, 6, 1)  # of the U-Net

Module = TypeVar("Module", bound=nn.Module)


def fill(module: Module, *, seed: int = 0, first: int = 0) -> Module:
    """The module in float64 and evaluation mode, each parameter drawn from a generator of its own, those from number `first` on."""
    for index, parameter in enumerate(module.double().parameters()):
        rng = torch.Generator().manual_seed(1000 * seed + first + index)
        parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * 0.3
    return module.eval()


def dit_config(**settings: Any) -> DitConfig:
    return DitConfig(**{"hidden_size": 16, "num_blocks": BLOCKS, "num_heads": 2, "cond_dim": 8, **settings})


def decoder_config(**settings: Any) -> DecoderConfig:
    small = {"hidden_size": 16, "num_blocks": BLOCKS, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "mlp_size": 24}
    return DecoderConfig(**{**small, **settings})


def maskgit_config(**settings: Any) -> MaskGitConfig:
    small = {"hidden_size": 16, "num_blocks": BLOCKS, "num_heads": 2, "mlp_size": 24, "dropout": 0.0}
    return MaskGitConfig(**{**small, **settings})


def unet_config(**settings: Any) -> UnetConfig:
    return UnetConfig(**{"width": 8, "multipliers": (1, 2), "res_blocks": 1, "dropout": 0.0, **settings})


def dit(*, seed: int = 0, **settings: Any) -> DIT:
    return fill(DIT(dit_config(**settings), num_states=STATES), seed=seed)


def decoder(*, num_rows: int = STATES + 2, mask_id: int = 4, **settings: Any) -> Decoder:
    """Two rows of its vocabulary are no states, and MASK is in the middle of them."""
    return fill(Decoder(decoder_config(**settings), num_states=STATES, mask_id=mask_id, num_rows=num_rows))


def maskgit(**settings: Any) -> MaskGit:
    return fill(MaskGit(maskgit_config(**settings), num_codes=CODES, num_classes=CLASSES, length=CODE_LENGTH))


def unet(shape: tuple[int, int, int] = SHAPE, **settings: Any) -> UNet:
    return fill(UNet(unet_config(**settings), shape=shape, num_states=LEVELS))


def tokens(num_batch: int, seed: int = 0) -> Tensor:
    """Sequences for the DIT, with some positions masked."""
    return torch.randint(STATES, (num_batch, LENGTH), generator=torch.Generator().manual_seed(seed))


def codes(num_batch: int, seed: int = 0) -> Tensor:
    """Sequences for MaskGit, with some positions masked."""
    return torch.randint(CODES + 1, (num_batch, CODE_LENGTH), generator=torch.Generator().manual_seed(seed))


def images(num_batch: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Images for the U-Net."""
    size = (num_batch, shape[0] * shape[1] * shape[2])
    return torch.randint(LEVELS, size, generator=torch.Generator().manual_seed(1))


def half(num_batch: int) -> Tensor:
    """t = 1/2 for all."""
    return torch.full((num_batch,), 0.5)

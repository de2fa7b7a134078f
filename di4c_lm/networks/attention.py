"""Softmax attention without a mask, by PyTorch's kernels or by flash-attn, and rotary positions."""

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

logger = logging.getLogger(__name__)


@cache
def use_flash(choice: str) -> bool:
    """Whether flash-attn serves: `choice` is auto, sdpa or flash. Raises `ValueError` where flash is asked for and absent."""
    present = importlib.util.find_spec("flash_attn") is not None
    if choice == "flash" and not (present and torch.cuda.is_available()):
        missing = "a GPU" if present else "the package flash-attn (the extra `flash`)"
        raise ValueError(f"model.attention='flash' needs {missing}; allowed here: auto, sdpa")
    if choice == "auto" and not present:
        logger.info("flash-attn is not installed: attention runs on PyTorch's scaled_dot_product_attention")
    return choice != "sdpa" and present and torch.cuda.is_available()


def attend(
    q: Float[Tensor, "N D heads dim"],
    k: Float[Tensor, "N D heads dim"],
    v: Float[Tensor, "N D heads dim"],
    *,
    flash: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "N D heads dim"]:
    """softmax(q k^T / sqrt(dim)) v over all positions, with `dropout` on the weights, always on.

    `flash` needs half-precision tensors on a GPU; others take PyTorch's path.
    """
    if flash and q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]

        return flash_attn_func(q, k, v, dropout_p=dropout)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout_p=dropout)
    return out.transpose(1, 2)


class Rotary(torch.nn.Module):
    """Rotary positions of Su et al. (2021), halves not interleaved, base 10000; positions at and past `num_rotated` keep phase 0."""

    inv_freq: Tensor

    def __init__(self, dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / base ** (torch.arange(0, dim, 2).float() / dim))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":  # noqa: FBT001, FBT002 (torch's)
        """Casts leave the frequencies exact: rounded to bfloat16 they would turn late positions by radians."""
        exact = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != exact.dtype:
            self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(self, num_rotated: int, num_extra: int) -> tuple[Float[Tensor, "P half"], Float[Tensor, "P half"]]:
        """Cosines and sines of `num_rotated` positions followed by `num_extra` that are not turned."""
        device = self.inv_freq.device
        position_P = torch.cat([torch.arange(num_rotated, device=device), torch.zeros(num_extra, device=device)])
        phase = position_P.float()[:, None] * self.inv_freq.float()
        return phase.cos(), phase.sin()


def rotate(
    x: Float[Tensor, "N P heads dim"], cos: Float[Tensor, "P half"], sin: Float[Tensor, "P half"]
) -> Float[Tensor, "N P heads dim"]:
    """Turn the pairs (x[i], x[i + dim/2]) by each position's phase."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

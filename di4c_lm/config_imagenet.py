"""Settings of the networks of the ImageNet domain: the masked transformer on codes, and the VQGAN that makes them."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Strict
from pydantic.dataclasses import dataclass

from di4c_lm.config import check

_STRICT = ConfigDict(extra="forbid", strict=True)
Ints = Annotated[tuple[int, ...], Strict(strict=False)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MaskGitConfig:
    """The transformer of MaskGIT-pytorch (Besnier and Chen 2023); the defaults are the published teacher's.

    `mask_state=true` leaves MASK a share of each prediction, as the published code does; else its probability is 0.
    """

    hidden_size: int = 768
    num_blocks: int = 24
    num_heads: int = 16
    mlp_size: int = 3072
    dropout: float = 0.1
    attention: Literal["auto", "sdpa", "flash"] = "auto"
    mask_state: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_blocks", "num_heads", "mlp_size"):
            check(getattr(self, name) > 0, name, getattr(self, name), "a value above 0")
        check(
            self.hidden_size % self.num_heads == 0,
            "hidden_size",
            self.hidden_size,
            f"a multiple of num_heads = {self.num_heads}",
        )
        check(0 <= self.dropout < 1, "dropout", self.dropout, "a value in [0, 1)")

    @property
    def time_conditioning(self) -> bool:
        """False: the number of MASKs tells the time."""
        return False


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class VqganConfig:
    """Taming's VQGAN (Esser et al. 2021), by the names of its YAML; the defaults are the published f16 with 1,024 codes.

    Images are `resolution` squared, codes `resolution` / 2^(len(ch_mult) - 1) squared.
    """

    n_embed: int = 1024  # K, codes
    embed_dim: int = 256
    z_channels: int = 256
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: Ints = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: Ints = (16,)
    dropout: float = 0.0
    norm_groups: int = 32
    beta: float = 0.25  # weight of the commitment

    def __post_init__(self) -> None:
        names = ("n_embed", "embed_dim", "z_channels", "resolution", "in_channels", "out_ch", "ch", "num_res_blocks")
        for name in (*names, "norm_groups"):
            check(getattr(self, name) > 0, name, getattr(self, name), "a value above 0")
        check(len(self.ch_mult) > 0 and min(self.ch_mult) > 0, "ch_mult", self.ch_mult, "factors above 0")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "a value in [0, 1)")
        check(self.beta >= 0, "beta", self.beta, "a value of at least 0")
        whole = self.resolution % self.factor == 0
        check(whole, "resolution", self.resolution, f"a multiple of 2^(len(ch_mult) - 1) = {self.factor}")
        check(self.ch % self.norm_groups == 0, "ch", self.ch, f"a multiple of norm_groups = {self.norm_groups}")

    @property
    def factor(self) -> int:
        """Pixels of an image a code, along one side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def side(self) -> int:
        """Codes along one side."""
        return self.resolution // self.factor

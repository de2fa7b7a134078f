"""λ: its law and its way into a network."""

from typing import Literal

from pydantic.dataclasses import dataclass

from di4c_lm.core.settings import STRICT, at_least, check, positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LatentConfig:
    """λ: its law, and the way it enters the student's network.

    `path=token` is the published extra token; `adaln` scales and shifts the norms. `inject_at=k` runs the blocks before k once per x_t;
    a negative k counts from the end, -1 being the last block. `head` enters behind the last attention, where λ may be a string of codes,
    one a window of positions: see `di4c_lm.mixtures.code_head`. `classes` makes λ a string of token classes behind the output head, which
    leaves the marginals as they are: see `di4c_lm.mixtures.class_head`.
    """

    law: Literal["uniform", "stratified", "gaussian", "codebook"] = "uniform"
    path: Literal["token", "adaln", "head", "classes"] = "token"
    inject_at: int = 0
    dim: int = 1  # law=gaussian: components of λ
    codebook_size: int = 16  # law=codebook: its vectors; 0 in a run's settings: as many as L, which enumerates them
    init_scale: float = 0.02  # standard deviation of the codebook, or of the λ path's first weights
    window: int = 0  # path=head: positions that share a code; 0: one code a sequence
    tie: Literal["chain", "none"] = "chain"  # path=head: whether a window's code depends on the one before
    weights: Literal["context", "uniform"] = "context"  # path=head: whether the law of the codes is predicted from x_t
    relations: int = 1  # path=classes: kinds of ties between neighbours, mixed with none at all as the context has it
    sweeps: int = 2  # path=classes: rounds of scaling that fit the chain to its marginals
    trunk: Literal["train", "frozen"] = "train"  # frozen: the teacher's weights stay, and the λ path alone is trained

    def __post_init__(self) -> None:
        at_least(self, 0, "codebook_size", "window")
        check(not self.is_string or self.law == "codebook", "law", self.law, f"codebook when path={self.path}")
        at_least(self, 1, "dim", "relations", "sweeps")
        positive(self, "init_scale")

    @property
    def is_string(self) -> bool:
        """Whether λ is a string of codes, tied along the sequence."""
        return self.path in ("head", "classes")

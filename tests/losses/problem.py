"""Random inputs of the loss, and both ways of reading them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.losses.reading import Reading, mixture_marginals, read_mixture
from di4c_lm.processes.denoiser import LinearHead, OutputHead, Positions
from tests.losses import oracle

FIELDS = ("joint", "product", "divergence", "component_divergence")


def read_rows(
    features: Tensor,
    positions: Positions,
    output_head: OutputHead,
    targets: Tensor,
    distributions: Sequence[Tensor] = (),
    *,
    components: bool = False,
    chunk_rows: int = 0,
) -> Reading:
    """The reading of L rows of features of equal weight, (M, L, H)."""
    options: Any = {"component_divergence": components, "chunk_rows": chunk_rows}
    return read_mixture(features, positions.position, output_head, targets, distributions, **options).summed(positions)


SETTINGS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**20),
        "num_examples": st.integers(1, 3),
        "num_lambdas": st.integers(1, 4),
        "num_positions": st.integers(1, 5),
        "num_states": st.integers(2, 9),
        "masked_share": st.sampled_from([0.0, 0.3, 0.7, 1.0]),
        "scale": st.sampled_from([0.1, 1.0, 6.0]),
        "with_impossible": st.booleans(),
    }
)


def fields_of(reading: Reading) -> dict[str, Tensor]:
    """The fields by name."""
    return {name: getattr(reading, name) for name in FIELDS}


@dataclass
class Problem:
    """Features, a linear output head, positions and targets, in float64; `weights` of the fields make one scalar of a reading.

    The targets are x_0 and samples, the distributions a teacher's and the marginal of a consistency target.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor
    positions: Positions
    targets: Tensor
    distributions: tuple[Tensor, Tensor]
    weights: dict[str, Tensor]
    impossible: int | None = None

    @property
    def x_0(self) -> Tensor:
        return self.targets[:, 0]

    @property
    def samples(self) -> Tensor:
        return self.targets[:, 1:]

    def rounded(self, dtype: torch.dtype) -> "Problem":
        """The same problem with features and parameters as `dtype` holds them, in float64 again."""
        values = {name: getattr(self, name).to(dtype).double() for name in ("features", "weight", "bias")}
        return Problem(**{**vars(self), **values})

    def head(self) -> LinearHead:
        return LinearHead(self.weight, self.bias, impossible=self.impossible)

    def read(self, **options: Any) -> Reading:
        """The reading by the code under test, in float64."""
        return read_rows(
            self.features,
            self.positions,
            self.head(),
            self.targets,
            self.distributions,
            **{"components": True, **options},
        )

    def log_p(self) -> Tensor:
        """Every component's log-probabilities, (M, L, S)."""
        return self._log_p([self.features, self.weight, self.bias])

    def lean(self, dtype: torch.dtype, chunk_rows: int = 0) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Reading and gradients by the code under test."""
        leaves = self._leaves(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        found = read_rows(
            leaves[0],
            self.positions,
            LinearHead(leaves[1], leaves[2], impossible=self.impossible),
            self.targets,
            [q.to(wide) for q in self.distributions],
            components=True,
            chunk_rows=chunk_rows,
        )
        return self._finish(fields_of(found), leaves)

    def plain(self, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Reading and gradients with (M, L, S) held, in `dtype` throughout."""
        leaves = self._leaves(dtype)
        example, count = self.positions.example, self.positions.num_examples
        return self._finish(
            oracle.reading(self._log_p(leaves), example, count, self.targets, self.distributions), leaves
        )

    def _log_p(self, leaves: Sequence[Tensor]) -> Tensor:
        logits_MLS = leaves[0] @ leaves[1].T + leaves[2]
        if self.impossible is not None:
            logits_MLS = logits_MLS.index_fill(2, torch.tensor([self.impossible]), -1e6)
        return logits_MLS.log_softmax(2)

    def _leaves(self, dtype: torch.dtype) -> list[Tensor]:
        return [v.detach().to(dtype).requires_grad_() for v in (self.features, self.weight, self.bias)]

    def _finish(self, found: dict[str, Tensor], leaves: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        total = torch.stack([(self.weights[name] * found[name]).sum() for name in FIELDS]).sum()
        return {name: found[name].detach() for name in FIELDS}, list(torch.autograd.grad(total, leaves))


def random_problem(
    seed: int,
    num_examples: int,
    num_lambdas: int,
    num_positions: int,
    num_states: int,
    *,
    width: int = 5,
    scale: float = 1.0,
    masked_share: float = 0.6,
    with_impossible: bool = False,
) -> Problem:
    """A problem from a seed; its positions are ragged, and may be none. `scale` is the size of the logits."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    impossible = num_states - 1 if with_impossible else None
    positions = Positions.where(torch.rand(num_examples, num_positions, generator=rng) < masked_share)
    count = len(positions.position)
    weight, bias = normal(num_states, width) * scale / width**0.5, normal(num_states)
    output_head = LinearHead(weight, bias, impossible=impossible)
    teacher_MS, marginal_MS = (
        mixture_marginals(normal(count, k, width), positions.position, output_head) for k in (1, num_lambdas)
    )
    shapes = {
        "joint": (1 + num_lambdas,),
        "product": (1 + num_lambdas,),
        "divergence": (2,),
        "component_divergence": (),
    }
    return Problem(
        features=normal(count, num_lambdas, width),
        weight=weight,
        bias=bias,
        positions=positions,
        targets=torch.randint(num_states - with_impossible, (count, 1 + num_lambdas), generator=rng),
        distributions=(teacher_MS, marginal_MS),
        weights={name: normal(num_examples, *shape) for name, shape in shapes.items()},
        impossible=impossible,
    )

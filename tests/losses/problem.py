"""Random inputs of the loss, and both ways of computing it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from di4c_lm.losses.di4c import UpperSide, di4c_terms
from di4c_lm.losses.positions import Positions
from di4c_lm.losses.reading import mixture_marginals
from di4c_lm.networks.output_head import LinearHead
from tests.losses import oracle

FIELDS = (
    "data_joint",
    "data_product",
    "data_marginal",
    "consistency_joint",
    "consistency_product",
    "consistency_marginal",
    "distil",
)


@dataclass
class Problem:
    """Features, a linear output head, positions and targets, in float64; `weights` of the fields make one scalar of the terms."""

    features: Tensor
    weight: Tensor
    bias: Tensor
    positions: Positions
    x_0: Tensor
    teacher: Tensor
    upper: UpperSide
    weights: dict[str, Tensor]
    impossible: int | None = None

    def rounded(self, dtype: torch.dtype) -> "Problem":
        """The same problem with features and parameters as `dtype` holds them, in float64 again."""
        values = {name: getattr(self, name).to(dtype).double() for name in ("features", "weight", "bias")}
        return Problem(**{**vars(self), **values})

    def _leaves(self, dtype: torch.dtype) -> list[Tensor]:
        return [v.detach().to(dtype).requires_grad_() for v in (self.features, self.weight, self.bias)]

    def _finish(self, found: dict[str, Tensor], leaves: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        total = sum((self.weights[name] * found[name]).sum() for name in FIELDS)
        return {name: found[name].detach() for name in FIELDS}, list(torch.autograd.grad(total, leaves))  # pyright: ignore

    def lean(self, dtype: torch.dtype, chunk_rows: int = 0) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Terms and gradients by the code under test."""
        leaves = self._leaves(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        output_head = LinearHead(leaves[1], leaves[2], impossible=self.impossible)
        upper = UpperSide(samples=self.upper.samples, marginal=self.upper.marginal.to(wide))
        terms = di4c_terms(
            leaves[0],
            output_head,
            self.positions,
            self.x_0,
            self.teacher.to(wide),
            upper,
            distil=True,
            chunk_rows=chunk_rows,
        )
        return self._finish({name: getattr(terms, name) for name in FIELDS}, leaves)

    def plain(self, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Terms and gradients with (M, L, S) held, in `dtype` throughout."""
        leaves = self._leaves(dtype)
        logits_MLS = leaves[0] @ leaves[1].T + leaves[2]
        if self.impossible is not None:
            logits_MLS = logits_MLS.index_fill(2, torch.tensor([self.impossible]), -1e6)
        found = oracle.terms(
            logits_MLS.log_softmax(2),
            self.positions.example,
            self.positions.num_examples,
            self.x_0,
            self.teacher,
            self.upper.samples,
            self.upper.marginal,
        )
        return self._finish(found, leaves)


def draw(
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
    num_sites = len(positions.position)
    weight, bias = normal(num_states, width) * scale / width**0.5, normal(num_states)
    output_head = LinearHead(weight, bias, impossible=impossible)
    top = num_states - with_impossible
    samples = torch.randint(top, (num_sites, num_lambdas), generator=rng)
    laws = [mixture_marginals(normal(num_sites, k, width), positions.position, output_head) for k in (1, num_lambdas)]
    return Problem(
        features=normal(num_sites, num_lambdas, width),
        weight=weight,
        bias=bias,
        positions=positions,
        x_0=torch.randint(top, (num_sites,), generator=rng),
        teacher=laws[0],
        upper=UpperSide(samples=samples, marginal=laws[1]),
        weights={name: normal(num_examples) for name in FIELDS},
        impossible=impossible,
    )

"""The contract of a mixture: λ, the network that it is given to, and the prediction that can be read, sampled and averaged.

    p(x_0 | x_t) = E_λ Π_d p(x_0^d | x_t; λ)

A kind of mixture is one file here: its settings, a frozen dataclass, and its class. `di4c_lm.mixtures.registry` finds it by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from di4c_lm.losses.positions import Positions
from di4c_lm.losses.reading import PositionReading, Reading, mixture_marginals, read_mixture
from di4c_lm.networks.prediction import Rows
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import Prediction
from di4c_lm.processes.rng import KeyedRng, Rng, uniform


@dataclass(frozen=True)
class Latents:
    """λ of B sequences, L a sequence: `value` (B, L, K) as the kind of mixture reads it.

    `enumerated`: these are all the components of a finite λ, for a loss to read, and no samples. Indexed by sequences.
    """

    value: Tensor
    enumerated: bool = False

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, rows: Tensor | slice) -> "Latents":
        return replace(self, value=self.value[rows])

    @property
    def num_lambdas(self) -> int:
        """L."""
        return self.value.shape[1]

    def one_a_row(self) -> "Latents":
        """The same B L samples as those of B L sequences, one each."""
        return replace(self, value=self.value.flatten(0, 1)[:, None])


@runtime_checkable
class Chain(Protocol):
    """The distribution of latent codes z, one a window of positions, L codes each."""

    @property
    def num_windows(self) -> int:
        """W."""
        ...

    @property
    def log_marginal(self) -> Float[Tensor, "B W L"]:
        """log p(z_w = j)."""
        ...

    def window_of(self, position: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
        """The window that holds a position."""
        ...

    def log_prob(self, log_emission: Float64[Tensor, "B W T L"]) -> Float64[Tensor, "B T"]:
        """log Σ_z p(z) Π_w e_w(z_w) for each of T observations."""
        ...

    def sample(self, u: Float64[Tensor, "B N W"]) -> Int64[Tensor, "B N W"]:
        """N samples of z a sequence, each code by the inverse distribution function of one uniform."""
        ...


@dataclass(frozen=True)
class Chained(Rows):
    """What is said of each position under each code of its window, and the chain that the codes follow: λ enumerated."""

    chain: Any  # a `Chain`

    def log_weight(self, positions: Positions) -> Float[Tensor, "M L"]:
        """log p(z = j) of the code at each position."""
        return self.chain.log_marginal[positions.example, self.chain.window_of(positions.position)]

    def read(
        self,
        positions: Positions,
        targets: Int64[Tensor, "M T"],
        distributions: Sequence[Float[Tensor, "M S"]] = (),
        *,
        components: bool = False,
        chunk_rows: int = 0,
    ) -> Reading:
        """See `Rows.read`; λ is summed out exactly, by the chain."""
        weight_ML, chain = self.log_weight(positions), self.chain
        read = self._read(positions, targets, distributions, weight_ML, components=components, chunk_rows=chunk_rows)
        slot_M = positions.example * chain.num_windows + chain.window_of(positions.position)
        shape = (positions.num_examples * chain.num_windows, *read.target_log_p.shape[1:])
        emission = torch.zeros(shape, dtype=torch.float64, device=slot_M.device)
        emission_BWLT = emission.index_add(0, slot_M, read.target_log_p.double()).unflatten(0, (-1, chain.num_windows))
        return Reading(
            joint=chain.log_prob(emission_BWLT.transpose(2, 3)),
            product=positions.per_example((read.target_log_p + weight_ML.double()[..., None]).logsumexp(1)),
            divergence=positions.per_example(read.divergence),
            component_divergence=positions.per_example(read.component_divergence),
        )

    def _read(
        self,
        positions: Positions,
        targets: Int64[Tensor, "M T"],
        distributions: Sequence[Float[Tensor, "M S"]],
        log_weight_ML: Float[Tensor, "M L"],
        *,
        components: bool,
        chunk_rows: int,
    ) -> PositionReading:
        """What is read position by position."""
        return read_mixture(
            positions.features(self.features),
            positions.position,
            self.output_head,
            targets,
            distributions,
            log_weight=log_weight_ML,
            component_divergence=components,
            chunk_rows=chunk_rows,
        )

    def marginals(self, positions: Positions, *, chunk_rows: int = 0) -> Float[Tensor, "M S"]:
        """See `Rows.marginals`."""
        return mixture_marginals(
            positions.features(self.features),
            positions.position,
            self.output_head,
            log_weight=self.log_weight(positions),
            chunk_rows=chunk_rows,
        )

    def sample(self, lam: Latents) -> Prediction:
        """What is said under samples of the codes, those of `lam`."""
        code_BNW = self.chain.sample(code_uniforms(lam, self.chain.num_windows))
        position_D = torch.arange(self.features.shape[2], device=code_BNW.device)
        return self.under(code_BNW[:, :, self.chain.window_of(position_D)])

    def independent(self, rng: torch.Generator) -> Prediction:
        """See `Rows.independent`."""
        num_batch, num_positions = len(self.features), self.features.shape[2]
        window_D = self.chain.window_of(torch.arange(num_positions, device=self.features.device))
        weight_NL = self.chain.log_marginal[:, window_D].exp().flatten(0, 1)
        code_N = sample_categorical(weight_NL, uniform(rng, (len(weight_NL),), weight_NL.device))
        return self.under(code_N.view(num_batch, 1, num_positions))


def code_uniforms(lam: Latents, num_windows: int) -> Float64[Tensor, "B N W"]:
    """The uniforms by which the codes of W windows are sampled, made of the one (B, N, 1) that stands for each sample of λ."""
    keys_N = lam.value.double().view(torch.int64).flatten()
    u_NW = KeyedRng(0, keys_N).uniform((len(keys_N), num_windows), lam.value.device)
    return u_NW.view(*lam.value.shape[:2], num_windows)


class Mixture(nn.Module, ABC):
    """A denoiser made of a network and of what a kind of λ adds to it.

    With `settings.freeze_backbone` the network is that of a teacher, whose weights it shares, and is neither trained, moved nor saved with
    the mixture: only the parameters of λ are its own.
    """

    kind: ClassVar[str]
    settings: Any
    network: Any

    @abstractmethod
    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Latents:
        """L samples of λ for each of B sequences; `rng` is the only source of chance. Raises `ValueError` for L below 1."""

    def training_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Latents:
        """λ as a loss reads it: all its components where the kind enumerates them, whatever L is, else samples."""
        return self.sample_latents(num_batch, num_lambdas, rng, device)

    @abstractmethod
    def forward(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Latents | None = None, cond: Tensor | None = None
    ) -> Rows:
        """Predict x_0 once for each λ; without `lam`, what the network says by itself. Raises `ValueError` for λ of another shape."""

    def guided(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Latents, cond: Tensor
    ) -> tuple[Prediction, Prediction]:
        """The predictions with and without the condition, under one and the same λ."""
        return self(x_t, t, lam, cond), self(x_t, t, lam, None)

    @abstractmethod
    def owns(self, name: str) -> bool:
        """Whether the parameter of this name belongs to λ: it learns at `optim.mixture_lr_scale` times the rate."""

    def begin(self, sequences: Int64[Tensor, "N D"], generator: torch.Generator) -> None:
        """Set λ's parameters off from the first sequences of the data, where the kind has a use for them."""

    def tensors(self, state: Mapping[str, Tensor] | None = None, *, whole: bool = True) -> dict[str, Tensor]:
        """What a checkpoint holds, by the names in files: λ's tensors and, if `whole`, the network's.

        `state` holds parameters where the module's own are not the ones meant (an EMA).
        """
        raise NotImplementedError

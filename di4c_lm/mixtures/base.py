"""The contract of a mixture: λ, the network that it is given to, and the prediction that can be read, sampled and averaged.

    p(x_0 | x_t) = E_λ Π_d p(x_0^d | x_t; λ)

A kind of mixture is one file here: its settings, a frozen dataclass, and its class. `di4c_lm.mixtures.registry` finds it by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import check, section
from di4c_lm.losses.reading import PositionReading, Reading
from di4c_lm.networks.base import Network, Rows, Stages, check_tensors
from di4c_lm.networks.lora import LoraSettings
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import Positions, Prediction, Walk
from di4c_lm.processes.masked import NEVER
from di4c_lm.processes.rng import KeyedRng, Rng, uniform

Settings = TypeVar("Settings", bound="MixtureSettings")
MixtureType = TypeVar("MixtureType", bound="Mixture")
Sequences = Callable[[], Int64[Tensor, "N D"]]  # the first of the data, asked for where a kind has a use for them
_NETWORK = "network."  # before the names of its parameters, in memory but not in files


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

    def of_each(self, number: Int64[Tensor, "B N"]) -> "Latents":
        """Of each sequence the samples of these numbers."""
        index_BNK = number[..., None].expand(-1, -1, self.value.shape[2])
        return replace(self, value=self.value.gather(1, index_BNK), enumerated=False)

    def one_a_row(self) -> "Latents":
        """The same B L samples as those of B L sequences, one each."""
        return replace(self, value=self.value.flatten(0, 1)[:, None])


class Chain(ABC):
    """The distribution of latent codes z, one a window of positions, L codes each."""

    @property
    @abstractmethod
    def num_windows(self) -> int:
        """W."""

    @property
    @abstractmethod
    def log_marginal(self) -> Float[Tensor, "B W L"]:
        """log p(z_w = j)."""

    @abstractmethod
    def window_of(self, position: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
        """The window that holds a position."""

    @property
    def num_links(self) -> int:
        """The windows that the chain goes through."""
        return self.num_windows

    @abstractmethod
    def window_at(self, link: int) -> Int64[Tensor, " B"]:
        """The number of the window that comes at this place of the chain; -1: none of this sequence."""

    @abstractmethod
    def moved(self, weight: Float[Tensor, "B L"] | None, link: int) -> Float[Tensor, "B L"]:
        """The distribution of the code at this place, from that at the place before; None: at the first."""

    @abstractmethod
    def log_prob(self, log_emission: Float64[Tensor, "B W T L"]) -> Float64[Tensor, "B T"]:
        """log Σ_z p(z) Π_w e_w(z_w) for each of T observations."""

    @abstractmethod
    def sample(self, u: Float64[Tensor, "B N W"]) -> Int64[Tensor, "B N W"]:
        """N samples of z a sequence, each code by the inverse distribution function of one uniform."""


@dataclass(frozen=True)
class Chained(Rows):
    """What is said of each position under each code of its window, and the chain that the codes follow: λ enumerated."""

    chain: Chain
    is_product: ClassVar[bool] = False

    def log_weight(self, positions: Positions) -> Float[Tensor, "M L"]:
        """log p(z = j) of the code at each position."""
        return self.chain.log_marginal[positions.example, self.chain.window_of(positions.position)]

    def summed(self, read: PositionReading, positions: Positions, log_weight: Tensor | None) -> Reading:
        """See `Rows.summed`; λ is summed out exactly, by the chain."""
        assert log_weight is not None
        chain = self.chain
        slot_M = positions.example * chain.num_windows + chain.window_of(positions.position)
        shape = (positions.num_examples * chain.num_windows, *read.target_log_p.shape[1:])
        emission = torch.zeros(shape, dtype=torch.float64, device=slot_M.device)
        emission_BWLT = emission.index_add(0, slot_M, read.target_log_p.double()).unflatten(0, (-1, chain.num_windows))
        return Reading(
            joint=chain.log_prob(emission_BWLT.transpose(2, 3)),
            product=positions.per_example((read.target_log_p + log_weight.double()[..., None]).logsumexp(1)),
            divergence=positions.per_example(read.divergence),
            component_divergence=positions.per_example(read.component_divergence),
        )

    def codes(self, lam: Latents) -> Int64[Tensor, "B N D"]:
        """The codes that each sample of λ stands for, at every position."""
        num_positions, num_windows = self.features.shape[2], self.chain.num_windows
        position_D = torch.arange(num_positions, device=lam.value.device)
        return self.chain.sample(code_uniforms(lam, num_windows))[:, :, self.chain.window_of(position_D)]

    @torch.no_grad()
    def walk(self, where: Bool[Tensor, "B D"], rows: int) -> Walk:
        """See `Prediction.walk`: along the chain, each position given the states that were sampled before it, λ summed out."""
        chain, weight_BL, left_BD = self.chain, None, where.clone()
        window_D = chain.window_of(torch.arange(where.shape[1], device=where.device))
        for link in range(chain.num_links):
            weight_BL = chain.moved(weight_BL, link)
            here_BD = left_BD & (window_D == chain.window_at(link)[:, None])
            while bool(here_BD.any()):
                row_N = here_BD.any(1).nonzero()[:, 0]
                position_N = here_BD[row_N].byte().argmax(1)
                at = Positions(example=row_N, position=position_N, num_examples=len(where))
                log_weight_NL = weight_BL[row_N].clamp(min=torch.finfo(weight_BL.dtype).tiny).log()
                state_N = yield (row_N, position_N), self.marginals(at, log_weight=log_weight_NL).log().clamp(min=NEVER)
                assert state_N is not None
                read = self.read_positions(at, state_N[:, None], (), log_weight_NL, components=False, chunk_rows=0)
                seen_NL = (log_weight_NL + read.target_log_p[:, :, 0]).softmax(1)
                weight_BL = weight_BL.index_copy(0, row_N, seen_NL.to(weight_BL.dtype))
                here_BD[row_N, position_N] = False

    def marginal_logits(self, row_N: Int64[Tensor, " N"], position_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """See `Prediction.marginal_logits`."""
        at = Positions(example=row_N, position=position_N, num_examples=len(self.features))
        return self.marginals(at).log().clamp(min=NEVER)

    def independent(self, rng: torch.Generator) -> Rows:
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


class MixtureSettings(ABC):
    """What the settings of every kind of mixture can do."""

    freeze_backbone: bool
    reads_features: ClassVar[bool] = (
        False  # whether the features of masked positions are all that it takes of a network
    )
    has_marginals: ClassVar[bool] = True  # whether the distribution of one position, λ averaged out, is known
    usual_sampler: ClassVar[str] = "ancestral"  # by which text is sampled where none is said

    @abstractmethod
    def wrap(self, network: Network) -> "Mixture":
        """A mixture on this network, λ's parameters fresh. Raises `ValueError` for a network that it does not go with."""

    def fresh(self, kind: type[Network], model: Any, sizes: Mapping[str, Any]) -> Any:
        """A mixture (without λ nothing else) on a fresh network of this class, settings and sizes."""
        make: Any = kind  # each network takes sizes of its own
        return self.wrap(make(model, **sizes))

    def sized(self: Settings, num_lambdas: int) -> Settings:
        """The same, with a codebook that has no size of its own as large as L."""
        return self

    def check_num_lambdas(self, num_lambdas: int) -> None:
        """Raise `ValueError` that names the key where L samples of λ are impossible."""
        check(num_lambdas >= 1, "objective.num_lambdas", num_lambdas, "at least 1")

    def over(
        self,
        teacher: "Network | Mixture",
        generator: torch.Generator,
        *,
        model: Any = None,
        sequences: Sequences | None = None,
    ) -> Any:
        """A student that begins as its teacher, on its device, in its dtype, in training mode; what is new is drawn from `generator`.

        It is a mixture, or without λ a network. A teacher that is a mixture itself (a second round) hands on its λ too. `model` may differ
        from the teacher's settings in what has no shape, such as dropout. The global generator is left alone.

        Raises:
            ValueError: shapes differ, all of them listed, or the teacher is a mixture of another kind or of other settings.
        """
        first = not isinstance(teacher, Mixture)
        if isinstance(teacher, Mixture) and teacher.settings != self:
            raise ValueError(f"mixture must be that of the teacher, {teacher.settings}, got {self}")
        network: Network = teacher if isinstance(teacher, Network) else teacher.network
        with drawn_from(generator):
            student = self.fresh(type(network), model or network.config, network.sizes)
        given = dict(network.state_dict()) if isinstance(teacher, Network) else teacher.tensors()
        own = student.tensors()
        latent = {name: own[name] for name in own if first and student.owns(name)}
        check_tensors({**given, **latent}, own, "the student of this teacher")
        reference = next(network.parameters())
        student.to(device=reference.device, dtype=reference.dtype)
        if student.shares_backbone:
            student.network.load_state_dict(network.state_dict(keep_vars=True), strict=True, assign=True)
            given = {name: tensor for name, tensor in given.items() if student.owns(name)}
        student.load({**student.tensors(whole=not student.shares_backbone), **given})
        if first and sequences is not None and student.has_latents:
            student.begin(sequences, generator)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(not self.freeze_backbone or student.learns_apart(name))
        return student.train()


@section
class NoMixture(MixtureSettings):
    """No λ: the network by itself, whose positions are independent given x_t."""

    freeze_backbone: ClassVar[bool] = False

    def wrap(self, network: Network) -> Any:
        """The network."""
        return network


@contextmanager
def drawn_from(generator: torch.Generator) -> Iterator[None]:
    """In the block the global generator is seeded by `generator`; afterwards it is as it was."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _of_network(name: str) -> Any:
    """An attribute that is the network's, to read and to set."""
    return property(lambda self: getattr(self.network, name), lambda self, value: setattr(self.network, name, value))


class Mixture(nn.Module, ABC):
    """A denoiser made of a network and of what a kind of λ adds to it.

    With `settings.freeze_backbone` the network shares the weights of a teacher, and is neither trained nor saved with the mixture, though
    it moves with it: only the parameters of λ are registered. What is not the mixture's own, such as sizes, is the network's.
    """

    has_latents: ClassVar[bool] = True
    is_told_positions: ClassVar[bool] = True  # see `predict_at`
    joint_over: Any = "masked"  # the positions that training takes together: all `masked`, or those `revealed` by the next step of a grid
    is_late = True  # whether λ enters behind the first block, so that equal sequences may share what comes before
    settings: Any
    network: Any
    activation_checkpointing = _of_network("activation_checkpointing")
    matmul_dtype = _of_network("matmul_dtype")

    def __init__(self, settings: MixtureSettings, network: Network, *, shares_backbone: bool) -> None:
        super().__init__()
        self.settings = settings
        self.shares_backbone = shares_backbone  # the network is frozen, outside the module's own parameters
        self.exact: dict[str, Tensor] | None = None
        self._of_network = frozenset(network.state_dict())
        if shares_backbone:
            object.__setattr__(self, "network", network.requires_grad_(False))  # not registered
        else:
            self.network = network

    @property
    def usual_sampler(self) -> str:
        """See `MixtureSettings`."""
        return self.settings.usual_sampler

    @abstractmethod
    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Latents:
        """L samples of λ for each of B sequences; `rng` is the only source of chance. Raises `ValueError` for L below 1."""

    def training_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Latents:
        """λ as a loss reads it: all its components where the kind enumerates them, whatever L is, else samples."""
        return self.sample_latents(num_batch, num_lambdas, rng, device)

    def num_components(self, limit: int) -> int:
        """L of `training_latents` where an evaluation may take `limit` samples: all components of a λ that has no more."""
        return limit

    def num_calls(self, limit: int) -> int:
        """Network calls that a prediction under `num_components` takes."""
        return self.num_components(limit)

    def rows_by_block(self, num_lambdas: int) -> list[float]:
        """Of each block, the rows a sequence that it is run on for L components: what the memory of its activations goes with."""
        return [1.0] * self.network.config.num_blocks

    @property
    def kept_beside(self) -> int:
        """Numbers a position that a loss keeps beside the network's, about."""
        return 0

    def forward(
        self,
        x_t: Int64[Tensor, "B D"],
        t: Float[Tensor, " B"],
        lam: Latents | None = None,
        cond: Tensor | None = None,
        *,
        at: Bool[Tensor, "B D"] | None = None,
        features: Float[Tensor, "M H"] | None = None,
    ) -> Rows:
        """Predict x_0 once for each λ; without `lam`, what the network says by itself. Raises `ValueError` for λ of another shape.

        With `features`, the network's at the masked positions, for a kind that reads no more of it, the network is not run.
        """
        if lam is None:
            return self.network(x_t, t, None, cond, at=at)
        self.check(x_t, lam)
        if features is not None:
            return self.drive(KnownStages(self.network, x_t, features, cond), lam)
        return self.network(x_t, t, None, cond, at=at, drive=partial(self._drive, lam=lam), share=self.is_late)

    def _drive(self, stages: Stages, lam: Latents) -> Rows:
        if stages.asked is not None:
            stages.asked = self.reads_at(stages.asked, stages.unknown, lam)
        return self.drive(stages, lam)

    def reads_at(self, asked: Bool[Tensor, "B D"], unknown: Bool[Tensor, "B D"], lam: Latents) -> Bool[Tensor, "B D"]:
        """The positions whose features have a part in what is said under λ of those `asked` for."""
        return asked | unknown if self.settings.reads_features and self.joint_over == "masked" else asked

    def check(self, x_t: Int64[Tensor, "B D"], lam: Latents) -> None:
        """Raise `ValueError` for λ of another shape than (B, L >= 1, K)."""
        shape = tuple(lam.value.shape)
        if len(shape) != 3 or len(lam) != len(x_t) or shape[1] < 1:
            raise ValueError(f"lam must have shape (B={len(x_t)}, L >= 1, K), got {shape}")

    @abstractmethod
    def drive(self, stages: Any, lam: Latents) -> Rows:
        """The prediction, from the stages of the network's pass."""

    def guided(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Latents, cond: Tensor
    ) -> tuple[Prediction, Prediction]:
        """The predictions with and without the condition, under one and the same λ."""
        return self(x_t, t, lam, cond), self(x_t, t, lam, None)

    def owns(self, name: str) -> bool:
        """Whether the tensor of this name in files belongs to λ; its parameter learns at `optim.mixture_lr_scale` times the rate."""
        return name not in self._of_network

    def learns_apart(self, name: str) -> bool:
        """`owns`, by the name in memory."""
        return self.owns(name.removeprefix(_NETWORK))

    def begin(self, sequences: Sequences, generator: torch.Generator) -> None:
        """Set λ's parameters off from the first sequences of the data, where the kind has a use for them."""

    def tensors(self, state: Mapping[str, Tensor] | None = None, *, whole: bool = True) -> dict[str, Tensor]:
        """What a file holds, by its names: λ's tensors and, if `whole`, the network's.

        `state` holds parameters, by their names in memory, where the module's own are not the ones meant (an EMA).
        """
        own = {**dict(self.named_buffers()), **state} if state is not None else self.state_dict()
        found = self.network.merged({name.removeprefix(_NETWORK): tensor for name, tensor in own.items()})
        if not whole:
            return {name: tensor for name, tensor in found.items() if self.owns(name)}
        return {**(self.exact or self.network.state_dict()), **found} if self.shares_backbone else found

    def load(self, tensors: Mapping[str, Tensor], *, assign: bool = False) -> None:
        """Take in what `tensors` gave; without the network's where it shares them with a teacher."""
        inside = {name: tensor for name, tensor in tensors.items() if name in self._of_network}
        own = {name: tensor for name, tensor in tensors.items() if name not in self._of_network}
        if not self.shares_backbone:
            own |= {_NETWORK + name: tensor for name, tensor in inside.items()}
        elif inside:
            self.network.load_state_dict(inside, strict=True, assign=assign)
        self.load_state_dict(own, strict=True, assign=assign)

    def adapt(self, lora: LoraSettings) -> None:
        """See `Network.adapt`: of the network; what λ has of its own is trained as before."""
        check(not self.shares_backbone, "lora.rank", lora.rank, "0 where mixture.freeze_backbone=true")
        self.network.adapt(lora)
        self._of_network = frozenset(self.network.state_dict())

    def keep_exact(self) -> None:
        """Keep the frozen weights as they are, on the CPU, for `tensors`, before they are cast to a narrower dtype."""
        if self.shares_backbone:
            self.exact = {name: t.detach().cpu().clone() for name, t in self.network.state_dict().items()}

    def train(self: MixtureType, mode: bool = True) -> MixtureType:  # noqa: FBT001, FBT002 (torch's)
        """See `nn.Module.train`; a shared backbone's modules are the mixture's own."""
        super().train(mode)
        self.network.train(mode)
        return self

    def _apply(self: MixtureType, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MixtureType:  # noqa: FBT001, FBT002
        super()._apply(fn, recurse)
        if self.shares_backbone:
            self.network._apply(fn, recurse)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "network":
                raise
            return getattr(self.network, name)


class KnownStages(Stages):
    """The stages of a pass that was made before: the features are known at the masked positions, and 0 at the others."""

    def __init__(
        self,
        network: Network,
        x_t: Int64[Tensor, "B D"],
        features: Float[Tensor, "M H"],
        segments: Int64[Tensor, "B D"] | None = None,
    ) -> None:
        mask_id: Any = network.mask_id
        self.unknown, self.output_head, self.segments = x_t.eq(mask_id), network.output_head(), segments
        self._features = features.to(next(network.parameters()).dtype)

    def features(self) -> Float[Tensor, "B D H"]:
        """See `Stages.features`."""
        shape = *self.unknown.shape, self._features.shape[1]
        return self._features.new_zeros(shape).index_put(self.unknown.nonzero(as_tuple=True), self._features)


class CodedMixture(Mixture):
    """λ is a latent code for each window of positions, and the codes follow a chain: exact in a loss, which enumerates them."""

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Latents:
        """See `Mixture.sample_latents`: one float64 uniform (B, L, 1) a sample, of which its codes are made."""
        if num_lambdas < 1:
            raise ValueError(f"num_lambdas must be at least 1, got {num_lambdas}")
        return Latents(uniform(rng, (num_batch, num_lambdas, 1), device))

    def training_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Latents:
        """See `Mixture.training_latents`: all codes. One uniform a sequence is passed over."""
        uniform(rng, (num_batch, 1, 1), device)
        return self.every_code(num_batch, device)

    def whole_latents(self, num_batch: int, device: torch.device) -> Latents:
        """All codes: the prediction is then of the whole mixture, and is sampled with λ summed out."""
        return self.every_code(num_batch, device)

    def every_code(self, num_batch: int, device: torch.device) -> Latents:
        """All codes of each sequence."""
        return Latents(code_numbers(self.settings.codebook_size, num_batch, device), enumerated=True)

    def num_components(self, limit: int) -> int:
        """See `Mixture.num_components`: all codes."""
        return self.settings.codebook_size

    def guided(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Latents, cond: Tensor
    ) -> tuple[Prediction, Prediction]:
        """See `Mixture.guided`: both are under the codes sampled with the condition, where one uniform would make different ones."""
        every = self.every_code(len(x_t), x_t.device)
        conditional, free = (cast(Chained, self(x_t, t, every, given)) for given in (cond, None))
        choice_BND = conditional.codes(lam)
        return conditional.under(choice_BND), free.under(choice_BND)


def code_numbers(size: int, num_batch: int, device: torch.device) -> Int64[Tensor, "B L 1"]:
    """The numbers of all codes for each sequence."""
    return torch.arange(size, device=device).view(1, -1, 1).expand(num_batch, -1, -1)

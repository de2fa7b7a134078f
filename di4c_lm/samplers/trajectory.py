"""Sampling: one function for every process, network, sampler and domain, and what a sampler has at hand along a trajectory."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import check, section, setting
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import At, Denoiser, Prediction, Walk, predict_at, sample_along
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import KeyedRng, Rng, uniform

P = TypeVar("P")
OnScored = Callable[[Int64[Tensor, "B D"], Float64[Tensor, "B D"], int], None]  # states, ln p of their tokens, the step
OnBatch = Callable[[int, "Sample"], None]  # the number of the batch's first sequence, and the batch
Noise = Literal["exact", "legacy_fp32"]
Certainty = Literal["probability", "entropy", "margin"]
_ROWS, _LEVEL_ROWS = 2**8, 2**14  # read at once
_KINDS: dict[type | tuple[type, ...], str] = {
    MaskedProcess: "a masked process",
    GaussianChain: "a chain on ordered levels",
    (MaskedProcess, GaussianChain): "a masked process or a chain on ordered levels",
}


@section
class Decoding:
    """How predictions become samples, whatever the sampler.

    `noise=legacy_fp32` is the published codes' float32 exponential noise over tokens and MASK together, which truncates rare tokens: for
    old tables only. Guidance w takes (1 + w) conditional - w unconditional logits (Ho and Salimans 2022) under the same λ; ramped
    linearly, step i of n has w i/(n - 1), a single step w (MaskGIT-pytorch). In the hybrid the teacher takes the last steps (Di4C, section
    5.1), where the correlations that a student adds matter least.
    """

    temperature: float = setting(
        1.0, "divides the logits, after λ is sampled; below 1 samples are more conservative; 0: the likeliest states"
    )
    top_p: float = setting(
        1.0, "nucleus sampling: keep the fewest likeliest states that together have this probability"
    )
    noise: Noise = setting(
        "exact", "exact: inverse CDF in float64; legacy_fp32: float32 noise, as in the published code"
    )
    end: Literal["sample", "argmax"] = setting(
        "sample", "what the last step takes: a sample, or the likeliest states (argmax)"
    )
    hold_latents: bool = setting(False, "keep one λ for all steps of a sample; else each network call has its own")
    guidance: float = setting(0.0, "weight w of classifier-free guidance; above 0 the data must have classes")
    guidance_ramp: Literal["linear", "constant"] = setting(
        "linear", "linear: w rises from 0 over the steps; constant: it does not"
    )
    hybrid_last: int = setting(0, "number of last steps that the teacher takes; all steps if there are fewer")

    def __post_init__(self) -> None:
        check(self.temperature >= 0, "temperature", self.temperature, "at least 0")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        check(self.guidance >= 0, "guidance", self.guidance, "at least 0")
        check(self.hybrid_last >= 0, "hybrid_last", self.hybrid_last, "at least 0")

    def weights(self, logits_NS: Float[Tensor, "N S"]) -> Float[Tensor, "N S"]:
        """Unnormalised probabilities; `logits_NS` is used up."""
        if self.temperature not in (0, 1):
            logits_NS = logits_NS.div_(self.temperature)
        p_NS = logits_NS.sub_(logits_NS.amax(1, keepdim=True)).exp_()
        return p_NS if self.top_p == 1 else _nucleus(p_NS, self.top_p)

    def probabilities(self, logits_NS: Float[Tensor, "N S"]) -> Float[Tensor, "N S"]:
        """Normalised probabilities; `logits_NS` is used up."""
        if self.top_p == 1:
            return logits_NS.div_(self.temperature or 1).softmax(1)
        p_NS = self.weights(logits_NS)
        return p_NS / p_NS.sum(1, keepdim=True)


def _nucleus(p_NS: Float[Tensor, "N S"], top_p: float) -> Float[Tensor, "N S"]:
    sorted_NS = p_NS.sort(1, descending=True).values
    below_NS = sorted_NS.cumsum(1, dtype=torch.float64) - sorted_NS
    kept_N = (below_NS < top_p * p_NS.sum(1, keepdim=True, dtype=torch.float64)).sum(1, keepdim=True)
    return torch.where(p_NS >= sorted_NS.gather(1, kept_N - 1), p_NS, 0.0)


def log_share(p_NS: Float[Tensor, "N S"], state_N: Int64[Tensor, " N"]) -> Float64[Tensor, " N"]:
    """log p(state) of unnormalised probabilities."""
    return (p_NS.gather(1, state_N[:, None])[:, 0].double() / p_NS.sum(1, dtype=torch.float64)).log()


def certainty(p_NS: Float[Tensor, "N S"], state_N: Int64[Tensor, " N"], by: Certainty) -> Float64[Tensor, " N"]:
    """How sure unnormalised probabilities are of a state, the larger the surer.

    `probability`: its log p. Of the distribution, whatever the state: `entropy`, with a minus; `margin`, p of the likeliest state less p of
    the second.
    """
    if by == "probability":
        return log_share(p_NS, state_N)
    p_NS = p_NS.double() / p_NS.sum(1, keepdim=True, dtype=torch.float64)
    if by == "entropy":
        return torch.xlogy(p_NS, p_NS).sum(1)
    first_N, second_N = p_NS.topk(2, 1).values.unbind(1)
    return first_N - second_N


@dataclass(frozen=True)
class Call:
    """What the network says of the sequences that were run; with `free`, the prediction without condition, the logits are guided."""

    run_B: Bool[Tensor, " B"]
    conditional: Prediction
    free: Prediction | None = None
    guidance: float = 0.0

    def logits(self, row_N: Int64[Tensor, " N"], position_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """A fresh tensor of logits at positions of sequences; guided, (1 + w) conditional - w free."""
        at = (self.run_B.cumsum(0) - 1)[row_N], position_N
        return self._guided([one.logits(*at) for one in self._predictions])

    def marginal_logits(self, row_N: Int64[Tensor, " N"], position_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """See `Prediction.marginal_logits`."""
        at = (self.run_B.cumsum(0) - 1)[row_N], position_N
        return self._guided([one.marginal_logits(*at) for one in self._predictions])

    def walk(self, where: Bool[Tensor, "B D"], rows: int) -> Walk:
        """See `Prediction.walk`; guided, the two predictions go the same way, and hear of the same states."""
        run_R, state_N = self.run_B.nonzero().squeeze(1), None
        walks = [one.walk(where[self.run_B], rows) for one in self._predictions]
        while True:
            try:
                found = [walk.send(state_N) for walk in walks]
            except StopIteration:
                return
            row_N, position_N = found[0][0]
            state_N = yield (run_R[row_N], position_N), self._guided([logits_NS for _, logits_NS in found])

    @property
    def _predictions(self) -> list[Prediction]:
        return [self.conditional] if self.free is None else [self.conditional, self.free]

    def _guided(self, logits: list[Float[Tensor, "N S"]]) -> Float[Tensor, "N S"]:
        return logits[0].mul_(1 + self.guidance).sub_(logits[1].mul_(self.guidance)) if len(logits) > 1 else logits[0]


class Calls:
    """A network as samplers call it, for the B sequences of one trajectory.

    `made` counts the sequences that were run; one of a guided call counts twice. A fresh λ is sampled for each sequence and call, or with
    `hold_latents` once for the trajectory. Where the network takes neither λ nor a time, a sequence that has not changed since its last
    call is not run again (the cache of MDLM; Sahoo et al. 2024).
    """

    def __init__(self, denoiser: Denoiser, *, hold_latents: bool = False, cond: Tensor | None = None) -> None:
        self._denoiser = denoiser
        self._hold_latents = hold_latents
        self._cond = cond
        self.made = 0
        self._lam: Any = None
        self._cached: tuple[Tensor, Tensor, Tensor] | None = (
            None  # sequences (B, D), where it has features, and these (B, 1, D, H)
        )
        self._told = getattr(denoiser, "is_told_positions", False)
        self._timeless = getattr(getattr(denoiser, "config", None), "time_conditioning", True) is False

    def __call__(
        self,
        x_BD: Int64[Tensor, "B D"],
        t_B: Float64[Tensor, " B"],
        run_B: Bool[Tensor, " B"],
        rng: Rng,
        *,
        guidance: float = 0.0,
        whole: bool = False,
        at: Bool[Tensor, "B D"] | None = None,
    ) -> Call | None:
        """Predictions for the sequences where `run_B`, None for none; λ is sampled for all, one tensor of `rng` unless it is held.

        `at`: the positions that will be read, where not all will.

        `whole`: of a mixture whose components can be enumerated, all of them, so that sampling sums λ out.
        """
        every = getattr(self._denoiser, "whole_latents", None) if whole else None
        if every is not None:
            self._lam = every(len(x_BD), x_BD.device)
        elif self._lam is None or not self._hold_latents:
            self._lam = self._denoiser.sample_latents(len(x_BD), 1, rng, x_BD.device)
        num_run, lam = int(run_B.sum()), None if self._lam is None else self._lam[run_B]
        if num_run == 0:
            return None
        cond = None if self._cond is None else self._cond[run_B]
        at_BD = torch.ones_like(x_BD, dtype=torch.bool) if at is None or not self._told else at
        if lam is None and cond is None and self._timeless:
            return Call(run_B, self._reused(x_BD, t_B, run_B, at_BD))
        self.made += num_run * (2 if guidance else 1)
        asked = x_BD[run_B], t_B[run_B].float(), lam
        if not guidance:
            return Call(run_B, predict_at(self._denoiser, *asked, cond, at_BD[run_B]))
        together = getattr(self._denoiser, "guided", None) if every is None else None  # a mixture's, under one λ
        both = together(*asked, cond) if together else [self._denoiser(*asked, given) for given in (cond, None)]
        return Call(run_B, both[0], both[1], guidance)

    def _reused(self, x_BD: Tensor, t_B: Tensor, run_B: Tensor, at_BD: Tensor) -> Prediction:
        if self._cached is None or self._cached[0].shape != x_BD.shape:
            self._cached = torch.full_like(x_BD, -1), torch.zeros_like(at_BD), x_BD.new_empty(0)
        seen_BD, has_BD, kept = self._cached
        stale_R = (run_B & ((seen_BD != x_BD) | (at_BD & ~has_BD)).any(1)).nonzero().squeeze(1)
        if len(stale_R):
            self.made += len(stale_R)
            x_RD = x_BD[stale_R]
            # All equal, as at the start: run one, and count them all, so that NFE do not depend on the batch.
            distinct_R, at_RD = stale_R, at_BD[stale_R]
            if bool((x_RD == x_RD[0]).all()):
                distinct_R, at_RD = stale_R[:1], at_RD.any(0, keepdim=True)
            asked = x_BD[distinct_R], t_B[distinct_R].float(), None, None
            features = predict_at(self._denoiser, *asked, at_RD).features
            if not len(kept):
                kept = features.new_empty(len(x_BD), *features.shape[1:])
                self._cached = seen_BD, has_BD, kept
            seen_BD[stale_R], has_BD[stale_R], kept[stale_R] = x_RD, at_RD, features
        return Prediction(kept[run_B], self._denoiser.output_head())


@dataclass(kw_only=True)
class Trajectory:
    """What a sampler has at hand for B sequences: the process, the network's predictions, chance, and which step it is.

    Positions in `fixed_BD` were given and never change. `log_p_BD`, where it is wanted, is kept up to date: at each position the logarithm
    of the probability with which its last state was sampled from a call, 0 before.
    """

    process: Process
    times: Float64[Tensor, " n"]
    decoding: Decoding
    rng: Rng
    fixed_BD: Bool[Tensor, "B D"]
    calls: Calls
    teacher: Calls | None = None  # of the hybrid
    log_p_BD: Float64[Tensor, "B D"] | None = None
    progress: float = field(default=1.0, init=False)  # from 0 in the first step to 1 in the last
    ends: bool = field(default=False, init=False)  # whether this step is the last
    _turn: Calls | None = field(default=None, init=False, repr=False)

    def steps(self, count: int) -> Iterator[int]:
        """0 to `count` - 1, each said before its step: the teacher takes the last `hybrid_last`, and guidance follows its ramp."""
        for index in range(count):
            self.progress = index / (count - 1) if count > 1 else 1.0
            self.ends = index == count - 1
            self._turn = self.teacher if index >= count - self.decoding.hybrid_last else self.calls
            yield index

    def intervals(self) -> Iterator[tuple[Float64[Tensor, ""], Float64[Tensor, ""]]]:
        """The steps (t, s) down the grid."""
        for index in self.steps(len(self.times) - 1):
            yield self.times[index], self.times[index + 1]

    def needs(self, kind: type[P]) -> P:
        """The process, of the kind that the sampler is for. Raises `ValueError` for another."""
        if not isinstance(self.process, kind):
            raise ValueError(f"the sampler needs {_KINDS[kind]}, got {type(self.process).__name__}")
        return self.process

    def uniform(self, *more: int) -> Float64[Tensor, "B D *more"]:
        """Uniforms in [0, 1), one a position, or as many as `more` says."""
        return uniform(self.rng, (*self.fixed_BD.shape, *more), self.fixed_BD.device)

    def every(self, t: Float64[Tensor, ""]) -> Float64[Tensor, " B"]:
        """The time of all sequences."""
        return t.expand(len(self.fixed_BD))

    @property
    def greedy(self) -> bool:
        """Whether this step takes the likeliest states."""
        return self.decoding.temperature == 0 or self.ends and self.decoding.end == "argmax"

    @property
    def legacy(self) -> bool:
        """Whether this step takes the published noise."""
        return self.decoding.noise == "legacy_fp32" and not self.greedy

    def reverse(self, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]) -> Int64[Tensor, "B D"]:
        """The exact reverse step, x_s ~ p(x_s | x_t)."""
        return self.process.reverse(x, self.predict, self.every(t), self.every(s), self.rng)

    def predict(
        self,
        x_t: Int64[Tensor, "B D"],
        t_B: Float64[Tensor, " B"],
        needed_BD: Bool[Tensor, "B D"],
        _rng: Rng | None = None,
    ) -> Int64[Tensor, "B D"]:
        """`x_t` with samples of x_0 ~ p(x_0 | x_t; λ) where needed, position by position (a `Predict` of the process)."""
        return self.propose(x_t, t_B, needed_BD)[0]

    def propose(
        self,
        x_t: Int64[Tensor, "B D"],
        t_B: Float64[Tensor, " B"],
        needed_BD: Bool[Tensor, "B D"],
        *,
        by: Certainty | None = None,
    ) -> tuple[Int64[Tensor, "B D"], Float64[Tensor, "B D"]]:
        """What `predict` gives, and with `by` how sure the prediction is of each sample by itself; 0 elsewhere.

        Sequences that need nothing are not run, and the output head runs at the positions needed alone. At temperature 0, and with `by`, λ
        is summed out where a mixture can do that: a λ sampled first would be noise in what is to be the likeliest, and each component is
        surer of its states than the mixture. Where states are sampled one given the other, it is their marginals that say how sure a
        prediction is of them: what is certain given a token that is not kept is not certain.
        """
        whole = by is not None or self.decoding.temperature == 0
        call, u_BD = self.call(x_t, t_B, needed_BD.any(1), whole=whole, at=needed_BD), self.uniform()
        x_0, log_p_BD, sure_BD = x_t.clone(), torch.zeros_like(u_BD), torch.zeros_like(u_BD)
        at_once = by if call is None or call.conditional.is_product else None

        def choose(at: At, logits_NS: Tensor) -> Tensor:
            p_NS = self.weigh(logits_NS)
            x_0[at] = state_N = p_NS.argmax(1) if self.greedy else sample_categorical(p_NS, u_BD[at])
            if self.log_p_BD is not None:
                log_p_BD[at] = log_share(p_NS, state_N)
            if at_once is not None:
                sure_BD[at] = certainty(p_NS, state_N, at_once)
            return state_N

        if call:
            sample_along(call.walk(needed_BD, self._rows), choose)
            if by is not None and at_once is None:
                for at, p_NS in self._marginals(call, needed_BD):
                    sure_BD[at] = certainty(p_NS, x_0[at], by)
        if self.log_p_BD is not None:
            self.log_p_BD[needed_BD] = log_p_BD[needed_BD]
        return torch.where(needed_BD, x_0, x_t), torch.where(needed_BD, sure_BD, 0.0)

    def distribution(self, x_t: Int64[Tensor, "B D"], t: Float64[Tensor, ""]) -> Float[Tensor, "B D S"]:
        """p(x_0 | x_t; λ) at every position by itself, by one call a sequence; at temperature 0 all on the likeliest state."""
        everywhere_BD = torch.ones_like(x_t, dtype=torch.bool)
        call = self.call(x_t, self.every(t), everywhere_BD.any(1))
        assert call is not None
        found = torch.cat([p_NS for _, p_NS in self._marginals(call, everywhere_BD)])
        if self.decoding.temperature == 0:
            found = torch.zeros_like(found).scatter_(1, found.argmax(1, keepdim=True), 1.0)
        return found.view(*x_t.shape, -1)

    def _marginals(self, call: Call, where_BD: Bool[Tensor, "B D"]) -> Iterator[tuple[At, Float[Tensor, "N S"]]]:
        """Positions `where`, some at a time, with what the call says of each by itself."""
        for at in zip(*(one.split(self._rows) for one in where_BD.nonzero(as_tuple=True)), strict=True):
            yield at, self.weigh(call.marginal_logits(*at))

    def call(
        self,
        x_t: Int64[Tensor, "B D"],
        t_B: Float64[Tensor, " B"],
        run_B: Bool[Tensor, " B"],
        *,
        whole: bool = False,
        at: Bool[Tensor, "B D"] | None = None,
    ) -> Call | None:
        """The network's prediction for the sequences where `run_B`, by whoever takes this step; None for none. See `Calls`."""
        ramp = self.progress if self.decoding.guidance_ramp == "linear" else 1.0
        guidance = self.decoding.guidance * ramp
        return (self._turn or self.calls)(x_t, t_B, run_B, self.rng, guidance=guidance, whole=whole, at=at)

    def weigh(self, logits_NS: Float[Tensor, "N S"]) -> Float[Tensor, "N S"]:
        """Probabilities, those of tokens, of which there are many, without the sum that no one needs; `logits_NS` is used up."""
        return (self.decoding.probabilities if self._on_levels else self.decoding.weights)(logits_NS)

    @property
    def _rows(self) -> int:
        return _LEVEL_ROWS if self._on_levels else _ROWS

    @property
    def _on_levels(self) -> bool:
        return isinstance(self.process, GaussianChain)


@runtime_checkable
class Sampler(Protocol):
    """A way from noise to data: a frozen dataclass of its settings, the same for every process, network and domain that it suits."""

    needs: ClassVar[Any]  # the kind of process that it is for, or a tuple of kinds; `object` for any

    def steps(self, trajectory: Trajectory, x: Int64[Tensor, "B D"]) -> Iterator[Int64[Tensor, "B D"]]:
        """The states after each step, from `x` at t = 1 to one of time 0."""
        ...


class StepByStep(ABC):
    """A sampler that is said by one step, from t to s."""

    def steps(self, trajectory: Trajectory, x: Int64[Tensor, "B D"]) -> Iterator[Int64[Tensor, "B D"]]:
        """One state an interval."""
        for t, s in trajectory.intervals():
            x = self.step(trajectory, x, t, s)
            yield x

    @abstractmethod
    def step(
        self, trajectory: Trajectory, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Int64[Tensor, "B D"]:
        """x_s."""


def name_of(sampler: Sampler) -> str:
    """Its name in settings."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(sampler).__name__).lower()


def _parts(sampler: Sampler) -> Iterator[Sampler]:
    yield sampler
    for one in vars(sampler).values():
        if isinstance(one, Sampler):
            yield from _parts(one)


def check_process(sampler: Sampler, process: type, decoding: Decoding) -> None:
    """Raise `ValueError` for a sampler or noise that has no meaning on processes of this class, or is made of one that has none."""
    parts = list(_parts(sampler))
    for one in parts:
        if not issubclass(process, one.needs):
            raise ValueError(f"sampler={name_of(one)} needs {_KINDS[one.needs]}, got {process.__name__}")
    published = issubclass(process, MaskedProcess) and {"ancestral", "analytic"} & {name_of(one) for one in parts}
    noise, allowed = decoding.noise, "exact but for ancestral and analytic steps of a masked process"
    check(noise == "exact" or published, "decoding.noise", noise, allowed)


def check_grid(times: Float64[Tensor, " n"]) -> None:
    """Raise `ValueError` unless `times` descends from 1 to 0."""
    if len(times) < 2 or times[0] != 1 or times[-1] != 0 or not bool((times.diff() < 0).all()):
        raise ValueError(f"grid must be times that descend from 1 to 0, got {times.tolist()}")


@dataclass(frozen=True)
class Sample:
    """Sequences x_0, and how many network calls one of them took on average (NFE)."""

    x: Int64[Tensor, "B D"]
    nfe: float


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    process: Process,
    x_init: Int64[Tensor, "B D"],
    times: Float64[Tensor, " n"],
    rng: Rng,
    *,
    sampler: Sampler | str = "ancestral",
    decoding: Decoding | None = None,
    cond: Tensor | None = None,
    teacher: Denoiser | None = None,
    on_step: Callable[[Int64[Tensor, "B D"]], None] | None = None,
    on_scored: OnScored | None = None,
) -> Sample:
    """Sample x_0 down the grid `times`, from 1 to 0, keeping what is certain in `x_init` (prompts, infilling) as it is.

    Args:
        denoiser: the network; it is asked for x_0 at each of `times` but the last.
        process: the process that it was trained on; `process.prior` makes an `x_init` that gives nothing.
        x_init: B sequences at t = 1.
        times: a grid, as `grids.make_grid` gives it.
        rng: with a `KeyedRng` a sequence does not depend on its batch.
        sampler: an object, or a name of `registry.SAMPLERS`.
        decoding: exact samples at temperature 1 by default.
        cond: (B, ...), passed to the network.
        teacher: takes the last `decoding.hybrid_last` steps.
        on_step: sees every state.
        on_scored: sees `x_init` as step 0, and the state after each further step, with the logarithms of the probabilities of its tokens:
            those of the calls that they were sampled from, given λ and after temperature and top_p; 0 where nothing was sampled.

    Raises `ValueError` for an empty `x_init`, a grid that does not descend from 1 to 0, and settings that do not fit process or network.

    Three tokens, every one as likely as the others, and MASK:

    >>> import torch
    >>> from di4c_lm.processes.denoiser import LinearHead, Prediction
    >>> from di4c_lm.processes.masked import MaskedProcess
    >>> from di4c_lm.processes.rng import KeyedRng
    >>> from di4c_lm.samplers.grids import make_grid
    >>> class Even:
    ...     def output_head(self):
    ...         return LinearHead(torch.zeros(4, 1), impossible=3)
    ...
    ...     def sample_latents(self, num_batch, num_lambdas, rng, device):
    ...         return None
    ...
    ...     def __call__(self, x_t, t, lam=None, cond=None):
    ...         return Prediction(torch.zeros(len(x_t), 1, x_t.shape[1], 1), self.output_head())
    >>> process, rng = MaskedProcess(mask_id=3), KeyedRng(0, torch.arange(2))
    >>> x_init = torch.tensor([[3, 3, 3, 3], [0, 3, 3, 2]])
    >>> found = sample(Even(), process, x_init, make_grid("uniform", 2), rng, sampler="confidence")
    >>> found.x[1, [0, 3]].tolist(), int(found.x.max()) < 3, found.nfe
    ([0, 2], True, 2.0)
    """
    if isinstance(sampler, str):
        from di4c_lm.samplers.registry import make_sampler

        sampler = make_sampler(sampler)
    check_grid(times)
    decoding = decoding or Decoding()
    check_process(sampler, type(process), decoding)
    if x_init.numel() == 0:
        shape = tuple(x_init.shape)
        raise ValueError(f"x_init must hold at least one sequence of at least one position, got shape {shape}")
    if decoding.guidance and cond is None:
        raise ValueError(f"guidance must be 0 where no condition (cond) is given, as for text, got {decoding.guidance}")
    if decoding.hybrid_last and teacher is None:
        raise ValueError(f"hybrid_last must be 0 where no teacher is given, got {decoding.hybrid_last}")
    own, others = (
        None if network is None else Calls(network, hold_latents=decoding.hold_latents, cond=cond)
        for network in (denoiser, teacher)
    )
    assert own is not None
    trajectory = Trajectory(
        process=process,
        times=times.to(x_init.device),
        decoding=decoding,
        rng=rng,
        fixed_BD=~process.unknown(x_init),
        calls=own,
        teacher=others,
        log_p_BD=None if on_scored is None else torch.zeros(x_init.shape, dtype=torch.float64, device=x_init.device),
    )
    x = x_init
    for step, x in enumerate(chain([x_init], sampler.steps(trajectory, x_init))):
        if on_step is not None and step:
            on_step(x)
        if on_scored is not None and trajectory.log_p_BD is not None:
            on_scored(x, trajectory.log_p_BD, step)
    assert not (isinstance(process, MaskedProcess) and bool(process.unknown(x).any()))
    return Sample(x, (own.made + (others.made if others else 0)) / len(x_init))


def sample_keyed(
    denoiser: Denoiser,
    process: Process,
    shape: tuple[int, int],
    times: Float64[Tensor, " n"],
    *,
    seed: int,
    sampler: Sampler | str = "ancestral",
    decoding: Decoding | None = None,
    batch_size: int = 64,
    x_init: Int64[Tensor, "N D"] | None = None,
    cond: Tensor | None = None,
    teacher: Denoiser | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[Int64[Tensor, "B D"]], None] | None = None,
    on_scored: OnScored | None = None,
    on_batch: OnBatch | None = None,
) -> Sample:
    """`sample` for N sequences of D positions, `shape`, in batches; sequence n depends on (seed, n) alone, whatever the batch.

    `x_init` is absent where nothing is given; `on_batch` sees each batch as it is done. Samples come back on the CPU.
    Raises `ValueError` as `sample` does, and for sizes below 1.
    """
    check(shape[0] >= 1, "num_samples", shape[0], "at least 1")
    check(batch_size >= 1, "batch_size", batch_size, "at least 1")
    rows, calls = [], 0.0
    for number_B in torch.arange(shape[0]).split(batch_size):
        rng = KeyedRng(seed, number_B.to(device))
        found = sample(
            denoiser,
            process,
            process.prior(len(number_B), shape[1], rng, torch.device(device))
            if x_init is None
            else x_init[number_B].to(device),
            times,
            rng,
            sampler=sampler,
            decoding=decoding,
            cond=None if cond is None else cond[number_B].to(device),
            teacher=teacher,
            on_step=on_step,
            on_scored=on_scored,
        )
        rows.append(found.x.cpu())
        calls += found.nfe * len(number_B)
        if on_batch is not None:
            on_batch(int(number_B[0]), Sample(rows[-1], found.nfe))
    return Sample(torch.cat(rows), calls / shape[0])

"""What is asked of a network: a prediction in two factors, hidden features and the output head that reads some of them."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.masked import NEVER
from di4c_lm.processes.process import Predict
from di4c_lm.processes.rng import Rng, uniform

NO_CLASS = -1  # the class of an example whose class is hidden
LOGITS_ON_CPU, LOGITS_ON_GPU = 2**23, 2**26  # in a chunk: little memory there, work enough for the card here
_STATES_ON_CPU, _STATES_ON_GPU = (
    2**11,
    2**14,
)  # that are multiplied at once: their rows of the weight stay in a core's cache
_SAMPLED_ROWS = 256  # rows of probabilities held at once

At = tuple[Int64[Tensor, " N"], Int64[Tensor, " N"]]  # positions of sequences: the rows, and the positions
# Positions that are sampled together, with their logits; it is sent the states that were sampled there before it goes on.
Walk = Generator[tuple[At, Float[Tensor, "N S"]], Int64[Tensor, " N"] | None, None]


def widest(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over S: float64 for float64 features, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(total)."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


@runtime_checkable
class OutputHead(Protocol):
    """Features of some positions to logits over S, with the product of a gradient and the Jacobian in closed form or by autograd."""

    num_states: int
    parameters: tuple[Tensor, ...]

    def logits(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """Unnormalised log-probabilities, in at least float32: a fresh tensor, which the caller may use up."""
        ...

    def vjp(
        self,
        features_NH: Float[Tensor, "N H"],
        positions_N: Int64[Tensor, " N"],
        grad_NS: Float[Tensor, "N S"],
        parameter_grads: Sequence[Tensor | None],
    ) -> Float[Tensor, "N H"]:
        """Gradient of the features; those of `parameters` are added to `parameter_grads` in place (None: not wanted).

        Where it is not said in closed form, the logits are made once more under autograd.
        """
        leaf_NH = features_NH.detach().requires_grad_()
        wanted = [(p, g) for p, g in zip(self.parameters, parameter_grads, strict=True) if g is not None]
        with torch.enable_grad():
            logits_NS = self.logits(leaf_NH, positions_N)
            grads = torch.autograd.grad(logits_NS, [leaf_NH, *(p for p, _ in wanted)], grad_NS)
        for (_, total), grad in zip(wanted, grads[1:], strict=True):
            total.add_(grad)
        return grads[0]

    def pieces(self, parameter_grads: Sequence[Tensor | None]) -> "Iterator[Piece]":
        """The head in heads of some of its states each, with their parts of `parameter_grads`; one that cannot be divided, as a whole."""
        yield Piece(slice(0, self.num_states), self, parameter_grads)

    def target_logits(
        self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"], targets_NT: Int64[Tensor, "N T"]
    ) -> Float[Tensor, "N T"]:
        """The logits of T states a position, differentiable, in at least float32."""
        return self.logits(features_NH, positions_N).gather(1, targets_NT)


@dataclass(frozen=True)
class WrappedHead(OutputHead):
    """A head that is made of another, `inner`, and has its states and parameters."""

    inner: OutputHead

    @property
    def num_states(self) -> int:
        """S."""
        return self.inner.num_states

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Those of `inner`."""
        return self.inner.parameters


@dataclass(frozen=True)
class Piece:
    """A head of some of the states, and what the gradients of its parameters are added to."""

    states: slice
    head: OutputHead
    parameter_grads: Sequence[Tensor | None]


@final
@dataclass(frozen=True)
class LinearHead(OutputHead):
    """logits = W h + b, b one for all positions or one a position. State `impossible`, where given, has probability 0.

    Products run in `matmul_dtype` where given. With `first_rows` the states are the first rows of W; the others embed what is none.
    """

    weight: Float[Tensor, "T H"]
    bias: Float[Tensor, "*P T"] | None = None
    impossible: int | None = None
    matmul_dtype: torch.dtype | None = None
    first_rows: int | None = None
    _casts: dict[torch.dtype, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_states(self) -> int:
        """S."""
        return self.first_rows or len(self.weight)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The whole weight, and the whole bias where there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def logits(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """W h + b, in at least float32."""
        product_NS = self._product(features_NH)
        if self.bias is not None:
            bias = self.bias[..., : self.num_states]
            bias = bias if bias.dim() == 1 else bias[positions_N]
            product_NS = product_NS + bias if product_NS.requires_grad else product_NS.add_(bias)
        if self.impossible is None:
            return product_NS
        if product_NS.requires_grad:
            return product_NS.index_fill(1, torch.tensor([self.impossible], device=product_NS.device), NEVER)
        product_NS[:, self.impossible] = NEVER
        return product_NS

    def vjp(
        self,
        features_NH: Float[Tensor, "N H"],
        positions_N: Int64[Tensor, " N"],
        grad_NS: Float[Tensor, "N S"],
        parameter_grads: Sequence[Tensor | None],
    ) -> Float[Tensor, "N H"]:
        """grad W for the features, at least in float32; grad^T h for the weight, sums (by position) for the bias.

        `grad_NS` may be changed.
        """
        if self.impossible is not None:
            grad_NS[:, self.impossible] = 0
        weight_SH = self._weight_for(features_NH)
        weight_grad, bias_grad = (*parameter_grads, None)[:2]
        grad_SH = None if weight_grad is None else weight_grad[: self.num_states]
        bias_grad = None if bias_grad is None else bias_grad[..., : self.num_states]
        if bias_grad is not None and bias_grad.dim() == 1:
            bias_grad.add_(grad_NS.sum(0))
        elif bias_grad is not None:
            add_rows_(bias_grad, positions_N, grad_NS)
        if weight_SH.dtype == grad_NS.dtype:
            if grad_SH is not None:
                grad_SH.addmm_(grad_NS.T, features_NH.to(grad_NS.dtype))
            return grad_NS @ weight_SH
        narrow_NH = features_NH.to(weight_SH.dtype)
        total_NH = torch.zeros_like(features_NH, dtype=grad_NS.dtype)
        for states in self._blocks():
            narrow_NK = grad_NS[:, states].to(weight_SH.dtype)
            total_NH += narrow_NK @ weight_SH[states]
            if grad_SH is not None:
                grad_SH[states] += narrow_NK.T @ narrow_NH
        return total_NH

    def pieces(self, parameter_grads: Sequence[Tensor | None]) -> Iterator[Piece]:
        """See `OutputHead.pieces`."""
        weight_grad, bias_grad = (*parameter_grads, None)[:2]
        for states in self._blocks():
            bias = None if self.bias is None else self.bias[..., states]
            is_here = self.impossible is not None and states.start <= self.impossible < states.stop
            impossible = self.impossible - states.start if self.impossible is not None and is_here else None
            head = LinearHead(self.weight[states], bias, impossible, self.matmul_dtype)
            head._casts.update({dtype: weight_SH[states] for dtype, weight_SH in self._casts.items()})
            of_weight = None if weight_grad is None else weight_grad[states]
            yield Piece(states, head, (of_weight, None if bias_grad is None else bias_grad[..., states]))

    def target_logits(
        self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"], targets_NT: Int64[Tensor, "N T"]
    ) -> Float[Tensor, "N T"]:
        """Of T rows of W alone."""
        wide = widest(features_NH.dtype)
        logit_NT = (F.embedding(targets_NT, self.weight).to(wide) @ features_NH.to(wide)[..., None])[..., 0]
        if self.bias is not None:
            at = (targets_NT,) if self.bias.dim() == 1 else (positions_N[:, None], targets_NT)
            logit_NT = logit_NT + self.bias[at].to(wide)
        return logit_NT if self.impossible is None else logit_NT.masked_fill(targets_NT == self.impossible, NEVER)

    def _product(self, features_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N S"]:
        """W h, block by block of states, so that each block's weights are read once and no narrow product is held whole."""
        weight_SH, wide = self._weight_for(features_NH), widest(features_NH.dtype)
        narrow_NH, is_wide = features_NH.to(weight_SH.dtype), weight_SH.dtype == wide
        if torch.is_grad_enabled() or (is_wide and weight_SH.is_cuda):
            return F.linear(narrow_NH, weight_SH).to(wide)
        product_NS = torch.empty(len(features_NH), self.num_states, dtype=wide, device=features_NH.device)
        for states in self._blocks():
            if is_wide:
                torch.mm(narrow_NH, weight_SH[states].T, out=product_NS[:, states])
            else:
                product_NS[:, states] = F.linear(narrow_NH, weight_SH[states])
        return product_NS

    def _blocks(self) -> list[slice]:
        return list(row_chunks(self.num_states, _STATES_ON_GPU if self.weight.is_cuda else _STATES_ON_CPU))

    def _weight_for(self, features_NH: Float[Tensor, "N H"]) -> Float[Tensor, "S H"]:
        """The weight in the dtype of the products; cast once for all chunks where no gradient is recorded."""
        dtype = self.matmul_dtype or features_NH.dtype
        weight_SH = self.weight if self.first_rows is None else self.weight[: self.first_rows]
        if weight_SH.dtype == dtype or torch.is_grad_enabled():
            return weight_SH.to(dtype)
        if dtype not in self._casts:
            self._casts[dtype] = weight_SH.to(dtype)
        return self._casts[dtype]


def add_rows_(
    total_MS: Float[Tensor, "M S"], into_N: Int64[Tensor, " N"], rows_NS: Float[Tensor, "N S"], weight: float = 1.0
) -> None:
    """total[into] += weight rows, in a fixed order on a GPU too, where index_add_ has none."""
    order_N = into_N.argsort(stable=True)
    touched_U, count_U = into_N[order_N].unique_consecutive(return_counts=True)
    sum_US = F.embedding_bag(order_N, rows_NS, count_U.cumsum(0) - count_U, mode="sum")
    total_MS[touched_U] += sum_US.mul_(weight).to(total_MS.dtype)


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of x_0: features (B, L, D, H), one row a λ and L = 1 where there is none, and the head that reads them."""

    features: Float[Tensor, "B L D H"]
    output_head: OutputHead
    is_product: ClassVar[bool] = (
        True  # whether the positions are independent given λ, so that they can be sampled in any order
    )

    def logits(self, row_N: Int64[Tensor, " N"], position_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """A fresh tensor of the logits at some positions of some sequences, of each the first row."""
        return self.output_head.logits(self.features[row_N, 0, position_N], position_N)

    def marginal_logits(self, row_N: Int64[Tensor, " N"], position_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """Those of a position by itself, whatever is sampled at the others: of a product, `logits`."""
        return self.logits(row_N, position_N)

    def walk(self, where: Bool[Tensor, "B D"], rows: int) -> Walk:
        """All positions `where`, as they can be sampled: of a product in any order, about `rows` at once, whatever the states are.

        Others may be among them whose states have a part in those that are asked for.
        """
        for at in zip(*(index_M.split(rows) for index_M in where.nonzero(as_tuple=True)), strict=True):
            yield at, self.logits(*at)

    def log_probs(self) -> Float[Tensor, "B L D S"]:
        """Normalised log-probabilities at every position, materialised: for small S, samplers and tests."""
        num_batch, num_lambdas, num_positions, _ = self.features.shape
        positions_N = torch.arange(num_positions, device=self.features.device).repeat(num_batch * num_lambdas)
        logits_NS = self.output_head.logits(self.features.flatten(0, 2), positions_N)
        return logits_NS.log_softmax(-1).view(num_batch, num_lambdas, num_positions, -1)


@dataclass(frozen=True, kw_only=True)
class Positions:
    """M positions of B examples, in any order: position `position[m]` of example `example[m]`."""

    example: Int64[Tensor, " M"]
    position: Int64[Tensor, " M"]
    num_examples: int  # B

    @classmethod
    def where(cls, chosen: Bool[Tensor, "B D"]) -> "Positions":
        """The positions at which `chosen` is true."""
        example_M, position_M = chosen.nonzero(as_tuple=True)
        return cls(example=example_M, position=position_M, num_examples=len(chosen))

    def among(self, num_positions: int) -> Bool[Tensor, "B D"]:
        """Which of the D positions of each example they are: what `where` was given."""
        chosen = torch.zeros(self.num_examples, num_positions, dtype=torch.bool, device=self.example.device)
        chosen[self.example, self.position] = True
        return chosen

    def gather(self, x: Int64[Tensor, "B D"]) -> Int64[Tensor, " M"]:
        """The values of `x` there."""
        return x[self.example, self.position]

    def features(self, features: Float[Tensor, "B L D H"]) -> Float[Tensor, "M L H"]:
        """The features there, of every λ."""
        return features[self.example, :, self.position]

    def per_example(self, value: Float[Tensor, "M *rest"]) -> Float64[Tensor, "B *rest"]:
        """Sums over the positions of each example, in float64."""
        total = torch.zeros(self.num_examples, *value.shape[1:], dtype=torch.float64, device=value.device)
        return total.index_add(0, self.example, value.double())


@runtime_checkable
class Denoiser(Protocol):
    """p(x_0 | x_t; λ), factored: all that samplers and objectives ask of a network."""

    def __call__(
        self,
        x_t: Int64[Tensor, "B D"],
        t: Float[Tensor, " B"],
        lam: Any = None,
        cond: Int64[Tensor, "B *each"] | None = None,
    ) -> Prediction:
        """Predict x_0 once for each λ of each sequence; `cond` are classes (`NO_CLASS`: hidden), or of text its records (B, D)."""
        ...

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Any:
        """L samples of λ a sequence, indexed by sequences, or None for a network without λ."""
        ...

    def output_head(self) -> OutputHead:
        """The output head that its predictions carry."""
        ...


def predict_at(
    denoiser: Denoiser,
    x_t: Int64[Tensor, "B D"],
    t: Float[Tensor, " B"],
    lam: Any,
    cond: Tensor | None,
    at: Bool[Tensor, "B D"],
    **more: Any,
) -> Any:
    """The prediction of a denoiser, of which the positions `at` alone will be read; one that says `is_told_positions` hears of it."""
    told = {"at": at} if getattr(denoiser, "is_told_positions", False) else {}
    return denoiser(x_t, t, lam, cond, **told, **more)


def rows_at_once(output_head: OutputHead, chunk_rows: int) -> int:
    """Rows of logits in a chunk: `chunk_rows`, or where that is 0 as many as make 2^23 logits on CPU, 2^26 on a GPU."""
    on_gpu = any(parameter.is_cuda for parameter in output_head.parameters)
    return chunk_rows or max(1, (LOGITS_ON_GPU if on_gpu else LOGITS_ON_CPU) // output_head.num_states)


def sample_along(walk: Walk, choose: Callable[[At, Float[Tensor, "N S"]], Int64[Tensor, " N"]]) -> None:
    """Let `choose` sample the states at all positions of a walk, each after those that it depends on."""
    state_N = None
    while True:
        try:
            at, logits_NS = walk.send(state_N)
        except StopIteration:
            return
        state_N = choose(at, logits_NS)


def predictor(denoiser: Denoiser, cond: Int64[Tensor, "B *each"] | None = None) -> Predict:
    """`predict` of `Process.reverse` by a network: one λ a sequence, a call for those that need one, then x_0 ~ p(x_0 | x_t; λ)."""

    def predict(x_t: Tensor, t: Tensor, needed_BD: Bool[Tensor, "B D"], rng: Rng) -> Tensor:
        lam = denoiser.sample_latents(len(x_t), 1, rng, x_t.device)
        u_BD = uniform(rng, tuple(x_t.shape), x_t.device)
        run_B, x_0 = needed_BD.any(1), x_t.clone()
        if not bool(run_B.any()):
            return x_0
        lam, cond_R = (None if of_all is None else of_all[run_B] for of_all in (lam, cond))
        prediction = predict_at(denoiser, x_t[run_B], t[run_B].float(), lam, cond_R, needed_BD[run_B])
        row_R = run_B.nonzero().squeeze(1)

        def choose(at: At, logits_NS: Tensor) -> Tensor:
            at = row_R[at[0]], at[1]
            x_0[at] = state_N = sample_categorical(logits_NS.softmax(1), u_BD[at])
            return state_N

        sample_along(prediction.walk(needed_BD[run_B], _SAMPLED_ROWS), choose)
        return x_0

    return predict

"""What is asked of a network: a prediction in two factors, hidden features and the output head that reads some of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.process import Predict
from di4c_lm.processes.rng import Rng, uniform

NO_CLASS = -1  # the class of an example whose class is hidden
LOGITS_ON_CPU, LOGITS_ON_GPU = 2**23, 2**26  # in a chunk: little memory there, work enough for the card here
_SAMPLED_ROWS = 256  # rows of probabilities held at once


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
        """Gradient of the features; those of `parameters` are added to `parameter_grads` in place (None: not wanted)."""
        ...

    def target_logits(
        self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"], targets_NT: Int64[Tensor, "N T"]
    ) -> Float[Tensor, "N T"]:
        """The logits of T states a position, differentiable, in at least float32."""
        return self.logits(features_NH, positions_N).gather(1, targets_NT)


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of x_0: features (B, L, D, H), one row a λ and L = 1 where there is none, and the head that reads them."""

    features: Float[Tensor, "B L D H"]
    output_head: OutputHead

    def logits(self, row_N: Int64[Tensor, " N"], position_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """A fresh tensor of the logits at some positions of some sequences, of each the first row."""
        return self.output_head.logits(self.features[row_N, 0, position_N], position_N)

    def log_probs(self) -> Float[Tensor, "B L D S"]:
        """Normalised log-probabilities at every position, materialised: for small S, samplers and tests."""
        num_batch, num_lambdas, num_positions, _ = self.features.shape
        positions_N = torch.arange(num_positions, device=self.features.device).repeat(num_batch * num_lambdas)
        logits_NS = self.output_head.logits(self.features.flatten(0, 2), positions_N)
        return logits_NS.log_softmax(-1).view(num_batch, num_lambdas, num_positions, -1)


@runtime_checkable
class Denoiser(Protocol):
    """p(x_0 | x_t; λ), factored: all that samplers and objectives ask of a network."""

    def __call__(
        self,
        x_t: Int64[Tensor, "B D"],
        t: Float[Tensor, " B"],
        lam: Any = None,
        cond: Int64[Tensor, " B"] | None = None,
    ) -> Prediction:
        """Predict x_0 once for each λ of each sequence; `cond` are classes, `NO_CLASS` where one is hidden."""
        ...

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Any:
        """L samples of λ a sequence, indexed by sequences, or None for a network without λ."""
        ...

    def output_head(self) -> OutputHead:
        """The output head that its predictions carry."""
        ...


def rows_at_once(output_head: OutputHead, chunk_rows: int) -> int:
    """Rows of logits in a chunk: `chunk_rows`, or where that is 0 as many as make 2^23 logits on CPU, 2^26 on a GPU."""
    on_gpu = any(parameter.is_cuda for parameter in output_head.parameters)
    return chunk_rows or max(1, (LOGITS_ON_GPU if on_gpu else LOGITS_ON_CPU) // output_head.num_states)


def predictor(denoiser: Denoiser, cond: Int64[Tensor, " B"] | None = None) -> Predict:
    """`predict` of `Process.reverse` by a network: one λ a sequence, a call for those that need one, then x_0 ~ p(x_0 | x_t; λ)."""

    def predict(x_t: Tensor, t: Tensor, needed_BD: Bool[Tensor, "B D"], rng: Rng) -> Tensor:
        lam = denoiser.sample_latents(len(x_t), 1, rng, x_t.device)
        u_BD = uniform(rng, tuple(x_t.shape), x_t.device)
        run_B, x_0 = needed_BD.any(1), x_t.clone()
        if not bool(run_B.any()):
            return x_0
        at_run = (None if of_all is None else of_all[run_B] for of_all in (lam, cond))
        prediction = denoiser(x_t[run_B], t[run_B].float(), *at_run)
        place_B = run_B.cumsum(0) - 1
        for at_C in zip(*(index_M.split(_SAMPLED_ROWS) for index_M in needed_BD.nonzero(as_tuple=True)), strict=True):
            p_CS = prediction.logits(place_B[at_C[0]], at_C[1]).softmax(1)
            x_0[at_C] = sample_categorical(p_CS, u_BD[at_C])
        return x_0

    return predict

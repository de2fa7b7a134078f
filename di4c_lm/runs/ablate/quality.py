"""How well a model samples a distribution that is known: the rows of a study by numbers of steps."""

import math
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.data.text.lists import ListOperations, bound
from di4c_lm.data.text.synthetic import Source, pair_frequencies
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.measure.text.factorisation import factorisation_error
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.left_to_right import LeftToRight
from di4c_lm.samplers.trajectory import sample_keyed
from di4c_lm.samplers.usual import resolved

_BATCH = 1024
_SEQUENCES, _DRAWS, _LAMBDAS = 128, 4, 8  # of an estimate of the factorisation error
Row = dict[str, Any]


def rows_of(kind: str, model: Any, source: Source, config: TextSettings, *, exact: bool) -> list[Row]:
    """Of a `denoiser` and its `process`, called `kind`: a row each number of steps, and operation on lists.

    Where the teacher is `exact` with the factorisation error, else with the distance of pairs.
    """
    seed, count = config.eval.seeds[0], config.eval.num_samples
    sampler = resolved(config.sampler, model.denoiser)
    model.denoiser.eval()
    own_ND = source.sample(count, torch.Generator().manual_seed(seed + 1_000_000))
    given_ND = torch.where(torch.arange(source.length) < model.process.given, own_ND, source.num_states)
    rows, shape = [], (count, source.length)
    for steps in config.eval.steps:
        how: dict[str, Any] = {"seed": seed, "batch_size": _BATCH, "x_init": given_ND, "sampler": sampler}
        x_ND = sample_keyed(model.denoiser, model.process, shape, uniform_grid(steps), **how).x
        of_steps = {"model": kind, "steps": steps}
        if not exact:
            rows.append(of_steps | likelihood(x_ND, source) | pairs(x_ND, source))
            continue
        some_ND = own_ND[:_SEQUENCES] if not isinstance(source, ListOperations) else own_ND
        more: dict[str, Any] = {"draws": _DRAWS, "lambdas": _LAMBDAS, "seed": seed}
        more["left_to_right"] = isinstance(sampler, LeftToRight)
        nats_N = factorisation_error(model, source, some_ND, steps=steps, **more)
        if not isinstance(source, ListOperations):
            rows.append(of_steps | likelihood(x_ND, source) | _error(nats_N))
            continue
        for number, operation in enumerate(source.operations):
            rows_N = source.operation_of(own_ND) == number
            right = {"accuracy": float(source.is_right(x_ND[rows_N]).double().mean())}
            rows.append({**of_steps, "operation": operation, **right, **_error(nats_N[rows_N])})
    return rows


def own_rows(source: Source, config: TextSettings, *, exact: bool) -> list[Row]:
    """Of the source's own samples; for lists what a product of positions can do in one call, in closed form."""
    if isinstance(source, ListOperations):
        bounds = {operation: bound(operation, source.list_length) for operation in source.operations}
        return [
            {
                "model": "bound",
                "steps": 1,
                "operation": operation,
                "accuracy": one.accuracy,
                "factorisation_nats": one.total_correlation,
                "factorisation_se": 0.0,
            }
            for operation, one in bounds.items()
        ]
    x_ND = source.sample(config.eval.num_samples, torch.Generator().manual_seed(config.eval.seeds[0] + 1_000_000))
    measured = {"factorisation_nats": 0.0, "factorisation_se": 0.0} if exact else pairs(x_ND, source)
    return [{"model": "data", "steps": 0, **likelihood(x_ND, source), **measured}]


def likelihood(x_ND: Int64[Tensor, "N D"], source: Source) -> dict[str, float]:
    """Mean -log p(x) of samples under the source, exact: nats a sequence."""
    return {"nll": float(-source.log_prob(x_ND).mean())}


def pairs(x_ND: Int64[Tensor, "N D"], source: Any) -> dict[str, float]:
    """The mean total variation between pairs of neighbours and the source's.

    It is above 0 for the source's own samples too, by chance: the rows of `data` say by how much.
    """
    distance_PSS = (pair_frequencies(x_ND, source.num_states) - source.pair_marginals()).abs()
    return {"pair_tv": float(distance_PSS.sum((1, 2)).mean() / 2)}


def _error(nats_N: Float64[Tensor, " N"]) -> dict[str, float]:
    return {
        "factorisation_nats": float(nats_N.mean()),
        "factorisation_se": float(nats_N.std()) / math.sqrt(len(nats_N)) if len(nats_N) > 1 else math.nan,
    }

"""Frontiers: generative perplexity against entropy, the temperature swept, and models compared where their samples are equally varied.

A lower temperature buys fluency with variety, so two models differ by what each says at the same entropy (generative frontiers: Pynadath,
Shi and Zhang 2026, arXiv 2604.02718). Axes: N samples, T temperatures, R resamples.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, final

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

from di4c_lm.measure.flow import Row, columns
from di4c_lm.measure.render.pictures import frontier_plot
from di4c_lm.measure.statistics.bootstrap import Resampled, smallest_difference
from di4c_lm.measure.text.counting import baselines, ngrams
from di4c_lm.measure.text.diversity import entropy
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.gen_ppl import DATA, perplexities
from di4c_lm.measure.text.perplexity import token_weighted
from di4c_lm.measure.text.samples import Reader, Sampler, TextRun, TextSamples, sampled, sampler_of


@final
@dataclass(frozen=True, eq=False)
class Frontier:
    """What a model gave at one number of steps at each temperature; sample n of all of them shares its chance."""

    model: str
    steps: int
    nll_TN: Float64[ndarray, "T N"]
    tokens_TN: Float64[ndarray, "T N"]
    entropy_TN: Float64[ndarray, "T N"]

    @property
    def reach(self) -> tuple[float, float]:
        """The lowest and the highest mean entropy."""
        mean_T = self.entropy_TN.mean(1)
        return float(mean_T.min()), float(mean_T.max())

    def arrays(self, num_samples: int) -> tuple[ndarray, ...]:
        """Those that `log_perplexity_at` takes, of the first samples."""
        return tuple(row for of in (self.nll_TN, self.tokens_TN, self.entropy_TN) for row in of[:, :num_samples])


def log_perplexity_at(entropy: float, *arrays: Float[ndarray, "*R N"]) -> Float[ndarray, "*R"]:
    """log generative perplexity at an entropy, by straight lines between the temperatures; beyond them that of the nearest.

    `arrays` are nats, tokens and entropies of all samples, each at every temperature: 3 T of them.
    """
    count = len(arrays) // 3
    value_T = np.stack(
        [np.log(token_weighted(arrays[i], arrays[count + i])) for i in range(count)]
    )  # and resamples behind
    at_T = np.stack([arrays[2 * count + i].mean(-1) for i in range(count)])
    order = np.argsort(at_T, axis=0, kind="stable")
    at_T, value_T = np.take_along_axis(at_T, order, 0), np.take_along_axis(value_T, order, 0)
    right = np.clip((at_T < entropy).sum(0, keepdims=True), min(1, count - 1), count - 1)
    left = np.maximum(right - 1, 0)
    (a, b), (low, high) = ([np.take_along_axis(of, one, 0)[0] for one in (left, right)] for of in (at_T, value_T))
    share = np.clip((entropy - a) / np.where(b > a, b - a, 1.0), 0.0, 1.0)
    return np.asarray(low + share * (high - low))


def matched(first: Frontier, second: Frontier, entropy: float, *, resamples: int, seed: int) -> Row:
    """Two frontiers at one entropy: the wanted one, or what is nearest to it among those that both reach.

    A row holds model, steps, against, against_steps, `entropy`, `gen_ppl` and `against_gen_ppl` with intervals, their `ratio`, below 1
    where the first is the more fluent, with its interval, and `detectable`: the smallest ratio above 1 that these samples show in 80 % of
    all cases at the level 5 %. Numbers are None where no entropy is reached by both.
    """
    low, high = (end(pair) for end, pair in zip((max, min), zip(first.reach, second.reach, strict=True), strict=True))
    row: Row = {"model": first.model, "steps": first.steps, "against": second.model, "against_steps": second.steps}
    if low > high:
        keys = ("gen_ppl", "against_gen_ppl", "ratio")
        ends = [key + end for key in keys for end in ("", "_low", "_high")]
        return row | dict.fromkeys(("entropy", *ends, "detectable"))
    at = min(max(entropy, low), high)
    count = min(first.nll_TN.shape[1], second.nll_TN.shape[1])
    of_first, of_second = (one.arrays(count) for one in (first, second))
    cut = len(of_first)

    def log_ratio(*arrays: ndarray) -> ndarray:
        return np.asarray(log_perplexity_at(at, *arrays[:cut]) - log_perplexity_at(at, *arrays[cut:]))

    how = {"resamples": resamples, "seed": seed}
    values = {
        "gen_ppl": Resampled(lambda *arrays: np.exp(log_perplexity_at(at, *arrays)), of_first),
        "against_gen_ppl": Resampled(lambda *arrays: np.exp(log_perplexity_at(at, *arrays)), of_second),
        "ratio": Resampled(lambda *arrays: np.exp(log_ratio(*arrays)), (*of_first, *of_second)),
    }
    error = Resampled(log_ratio, (*of_first, *of_second)).interval(**how).error
    return row | {"entropy": at} | columns(values, **how) | {"detectable": math.exp(smallest_difference(error))}


def frontier_part(run: TextRun, settings: Any, evaluators: list[Evaluator], *_: Any) -> dict[str, Any]:
    """`frontier`, a row a model, number of steps and temperature, counting and the validation set beside, and `matched`, of every two.

    Counting is sampled at temperature 1 alone. Each model is compared with each other at all numbers of steps of both, at the entropy of
    the validation set where both reach it.
    """
    seed = settings.seeds[0]
    reader = Reader(tokenizer=run.student.tokenizer, evaluators=evaluators[:1], settings=settings, cache=run.cache)
    resampling = {"resamples": settings.bootstrap, "seed": seed}
    rows: list[Row] = []
    cells: dict[tuple[str, int, str], list[tuple[ndarray, ...]]] = {}
    for temperature, one in _samples(run, settings):
        read = reader.documents(evaluators[0], one)
        nll_N, tokens_N = reader.nll(evaluators[0], read, one.name)
        varied = entropy(one, reader)
        row = {"model": one.name, "kind": one.kind, "steps": one.steps, "nfe": float(one.nfe)}
        row |= {"temperature": temperature, "num_samples": len(one.tokens)}
        rows.append(row | columns({"gen_ppl": perplexities(one, nll_N, tokens_N)["gen_ppl"], **varied}, **resampling))
        cells.setdefault((one.name, one.steps, one.kind), []).append((nll_N, tokens_N, varied["entropy"].arrays[0]))
    frontiers = {
        key: Frontier(key[0], key[1], *(np.stack(of) for of in zip(*parts, strict=True)))
        for key, parts in cells.items()
    }
    of_kind = {kind: [one for key, one in frontiers.items() if key[2] == kind] for kind in ("model", "baseline")}
    pairs = [(a, b) for b, a in combinations(of_kind["model"], 2) if a.model != b.model]
    pairs += [(a, b) for a in of_kind["model"] for b in of_kind["baseline"]]
    compared = [matched(a, b, rows[0]["entropy"], **resampling) for a, b in pairs]
    return {"frontier": rows, "matched": compared, "pictures": {"frontier": frontier_plot(rows)}}


def _samples(run: TextRun, settings: Any) -> Iterator[tuple[float | None, TextSamples]]:
    """Each with its temperature, the validation set first."""
    count, seed, length = settings.num_samples, settings.seeds[0], run.student.length
    yield None, TextSamples(name=DATA, kind="data", tokens=run.some_validation(count, seed))
    how: dict[str, Any] = {"length": length, "seeds": (seed,), "progress": True}
    for name, model in run.models.items():
        for temperature in settings.temperatures:
            making: dict[str, Sampler] = {
                name: sampler_of(model, settings.batch_size, **settings.how, temperature=temperature)
            }
            for one in sampled(making, count, steps=settings.steps, **how):
                yield temperature, one
    if settings.baselines and run.training is not None:
        counted = ngrams(run.training, len(run.student.tokenizer))
        for name, source in baselines(run, counted, settings.batch_size, settings.how).items():
            for one in sampled({name: source.sampler}, count, steps=source.steps or settings.steps, **how):
                yield 1.0, replace(one, kind="baseline")

"""Generative perplexity and sample entropy of several samplers at several step counts, beside held-out text.

The one measurement behind `eval/gen_ppl.py` and the closing report of a training run. It knows samplers as callables
and nothing of our models.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from tqdm import tqdm

from di4c_lm.domains.text.settings import EvalConfig
from di4c_lm.measure.statistics import bootstrap
from di4c_lm.measure.text.diversity import corpus_entropy, distinct_n, sample_entropy
from di4c_lm.measure.text.encoding import documents
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.gen_ppl_settings import Prompting, Scoring
from di4c_lm.measure.text.perplexity import context_limit, score, token_weighted

Sampler: TypeAlias = Callable[[int, int, int], tuple[Tensor, float]]
"""(num_samples, steps, seed) -> (tokens Int[N D], nfe a sample)."""

PromptedSampler: TypeAlias = Callable[[Tensor, int, int], tuple[Tensor, float]]
"""(prompts Int[N P], steps, seed) -> (tokens Int[N D] that begin with the prompts, nfe a sample)."""

Row: TypeAlias = dict[str, Any]
DATA = "data"


@final
@dataclass(frozen=True, kw_only=True)
class Measurement:
    """`rows`: one a model and step count. `comparisons`: one a pair of models, step count and metric."""

    rows: list[Row]
    comparisons: list[Row]


@final
@dataclass(frozen=True, kw_only=True)
class _Units:
    """What is resampled: one entry a sample, or a prompt with its continuations summed."""

    nll: Float[ndarray, " N"]
    tokens: Float[ndarray, " N"]
    mean_nll: Float[ndarray, " N"]  # a token, averaged over the unit's documents
    entropy: Float[ndarray, " N"]


_STATISTICS: dict[str, Callable[[_Units], tuple[bootstrap.Statistic, tuple[ndarray, ...]]]] = {
    "gen_ppl": lambda units: (token_weighted, (units.nll, units.tokens)),
    "gen_ppl_doc": lambda units: (lambda mean_nll: np.exp(mean_nll.mean(-1)), (units.mean_nll,)),
    "entropy": lambda units: (lambda entropy: entropy.mean(-1), (units.entropy,)),
}


def measure(
    samplers: Mapping[str, Sampler],
    data_ND: Int[Tensor, "N D"],
    *,
    tokenizer: Any,
    evaluator: Evaluator,
    config: EvalConfig,
    scoring: Scoring | None = None,
    progress: bool = True,
) -> Measurement:
    """The unconditional form: every sampler at every step count, all from the seed `config.seed`, and held-out text.

    A row holds model, steps, nfe, gen_ppl (token-weighted), entropy (nats, within a sample, over all its tokens),
    each with `_low` and `_high` of a 95 % bootstrap over samples, num_samples; besides gen_ppl_doc
    (document-weighted), corpus_entropy, distinct_2, evaluator_tokens, seconds. The row "data" has steps 0 and nfe 0.0:
    `config.num_samples` held-out sequences drawn without replacement, all of them where there are fewer.

    Raises `ValueError`: fewer than 2 held-out sequences, a sampler that returns another number or length of samples
    or unfinished ones, text longer than the evaluator reads.
    """
    bench = _Bench(
        tokenizer=tokenizer, evaluator=evaluator, config=config, scoring=scoring or Scoring(), progress=progress
    )
    chosen = _choose(data_ND, config.num_samples, config.seed)

    def draws() -> Iterator[_Draw]:
        yield _Draw(name=DATA, steps=0, nfe=0.0, tokens=chosen)
        for (name, sampler), steps in bench.cells(samplers):
            start = time.perf_counter()
            tokens, nfe = sampler(config.num_samples, steps, config.seed)
            seconds = time.perf_counter() - start
            _check_samples(name, steps, tokens, (config.num_samples, data_ND.shape[1]))
            yield _Draw(name=name, steps=steps, nfe=nfe, tokens=tokens, seconds=seconds)

    return bench.run(draws())


def measure_conditional(
    samplers: Mapping[str, PromptedSampler],
    data_ND: Int[Tensor, "N D"],
    *,
    tokenizer: Any,
    evaluator: Evaluator,
    config: EvalConfig,
    prompting: Prompting | None = None,
    scoring: Scoring | None = None,
    progress: bool = True,
) -> Measurement:
    """The conditional form: continuations of prompts cut from held-out text (Di4C, section 5.3).

    The NLL is of the continuation given its prompt. Rows as in `measure`; entropy and diversity are of the
    continuations alone, intervals resample prompts with all their continuations, and the row "data" continues each
    prompt as the held-out text does. `config.num_samples` plays no part.
    """
    bench = _Bench(
        tokenizer=tokenizer, evaluator=evaluator, config=config, scoring=scoring or Scoring(), progress=progress
    )
    prompting = (prompting or Prompting()).fit(data_ND.shape[1])
    prompt, end = prompting.prompt_length, prompting.prompt_length + prompting.continuation_length
    chosen = _choose(data_ND, prompting.prompts, config.seed)
    repeats = prompting.continuations
    prompts_NP = chosen[:, :prompt].repeat_interleave(repeats, 0)

    def draws() -> Iterator[_Draw]:
        yield _Draw(name=DATA, steps=0, nfe=0.0, tokens=chosen[:, :end], context=prompt)
        for (name, sampler), steps in bench.cells(samplers):
            start = time.perf_counter()
            tokens, nfe = sampler(prompts_NP, steps, config.seed)
            seconds = time.perf_counter() - start
            _check_samples(name, steps, tokens, (len(prompts_NP), data_ND.shape[1]))
            if not torch.equal(tokens[:, :prompt].cpu(), prompts_NP.cpu()):
                raise ValueError(f"sampler {name!r} at {steps} steps changed its prompts")
            kept = tokens[:, :end]
            yield _Draw(name=name, steps=steps, nfe=nfe, tokens=kept, seconds=seconds, context=prompt, repeats=repeats)

    return bench.run(draws())


@final
@dataclass(frozen=True, kw_only=True)
class _Draw:
    """Samples of one model at one step count; `repeats` neighbours share a prompt of `context` tokens."""

    name: str
    steps: int
    nfe: float
    tokens: Int[Tensor, "N D"]
    seconds: float = 0.0
    context: int = 0
    repeats: int = 1


@final
@dataclass(frozen=True, kw_only=True)
class _Bench:
    tokenizer: Any
    evaluator: Evaluator
    config: EvalConfig
    scoring: Scoring
    progress: bool

    def cells(self, samplers: Mapping[str, Any]) -> Iterator[tuple[tuple[str, Any], int]]:
        """Every sampler with every step count, under the progress bar."""
        if DATA in samplers:
            raise ValueError(f"a sampler may not be called {DATA!r}: that is the row of the held-out text")
        cells = [(item, steps) for item in samplers.items() for steps in self.config.steps]
        bar = tqdm(cells, desc="evaluating", unit="row", disable=not self.progress)
        for (name, sampler), steps in bar:
            bar.set_postfix_str(f"{name}, {steps} steps")
            yield (name, sampler), steps

    def run(self, draws: Iterator[_Draw]) -> Measurement:
        rows, units = [], {}
        for draw in draws:
            units[draw.name, draw.steps] = self.units(draw)
            rows.append(self.row(draw, units[draw.name, draw.steps]))
        return Measurement(rows=rows, comparisons=self.comparisons(units))

    def units(self, draw: _Draw) -> _Units:
        limit = context_limit(self.evaluator.model) if self.scoring.overflow == "truncate" else None
        scores = score(
            self.evaluator.model,
            documents(
                draw.tokens,
                tokenizer=self.tokenizer,
                evaluator_tokenizer=self.evaluator.tokenizer,
                context=draw.context,
                retokenize=self.scoring.retokenize,
                limit=limit,
            ),
            batch_size=self.scoring.batch_size,
            eos=self.scoring.eos,
            eos_id=self.evaluator.tokenizer.eos_token_id,
            progress=f"scoring {draw.name}" if self.progress else None,
        )
        entropy = sample_entropy(draw.tokens[:, draw.context :]).cpu().numpy()
        return _Units(
            nll=scores.nll.reshape(-1, draw.repeats).sum(1),
            tokens=scores.tokens.reshape(-1, draw.repeats).sum(1).astype(np.float64),
            mean_nll=(scores.nll / scores.tokens).reshape(-1, draw.repeats).mean(1),
            entropy=entropy.reshape(-1, draw.repeats).mean(1),
        )

    def row(self, draw: _Draw, units: _Units) -> Row:
        own = draw.tokens[:, draw.context :]
        row: Row = {"model": draw.name, "steps": draw.steps, "nfe": float(draw.nfe)}
        for metric, of_units in _STATISTICS.items():
            statistic, arrays = of_units(units)
            found = bootstrap.interval(statistic, arrays, resamples=self.config.bootstrap, seed=self.config.seed)
            row |= {metric: found.estimate, f"{metric}_low": found.low, f"{metric}_high": found.high}
        return row | {
            "num_samples": len(draw.tokens),
            "corpus_entropy": corpus_entropy(own),
            "distinct_2": distinct_n(own, 2) if own.shape[1] >= 2 else 1.0,
            "judge_tokens": int(units.tokens.sum()),
            "seconds": round(draw.seconds, 3),
        }

    def comparisons(self, units: dict[tuple[str, int], _Units]) -> list[Row]:
        names = [name for name in dict.fromkeys(name for name, _ in units) if name != DATA]
        found = []
        for (b, a), steps in ((pair, steps) for pair in combinations(names, 2) for steps in self.config.steps):
            for metric in ("gen_ppl", "entropy"):
                statistic, arrays_a = _STATISTICS[metric](units[a, steps])
                _, arrays_b = _STATISTICS[metric](units[b, steps])
                difference = bootstrap.paired_difference(
                    statistic, arrays_a, arrays_b, resamples=self.config.bootstrap, seed=self.config.seed
                )
                found.append(
                    {
                        "metric": metric,
                        "of": a,
                        "minus": b,
                        "steps": steps,
                        "difference": difference.estimate,
                        "difference_low": difference.low,
                        "difference_high": difference.high,
                        "p_value": difference.p_value,
                    }
                )
        return found


def _choose(data_ND: Int[Tensor, "N D"], num_samples: int, seed: int) -> Int[Tensor, "M D"]:
    if len(data_ND) < 2:
        raise ValueError(f"{len(data_ND)} held-out sequences are too few: an interval needs at least 2")
    return data_ND[torch.randperm(len(data_ND), generator=torch.Generator().manual_seed(seed))[:num_samples]]


def _check_samples(name: str, steps: int, tokens: Tensor, expected: tuple[int, int]) -> None:
    if tuple(tokens.shape) != expected:
        raise ValueError(
            f"sampler {name!r} at {steps} steps gave samples of shape {tuple(tokens.shape)}, expected {expected}"
        )

"""How fluent samples are: their perplexity under evaluators, and what the order of their tokens is worth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from di4c_lm.measure.flow import Metric
from di4c_lm.measure.statistics.bootstrap import Resampled, exp_mean, mean
from di4c_lm.measure.text.perplexity import Document, token_weighted
from di4c_lm.measure.text.samples import TextSamples

Quantities: TypeAlias = dict[str, Resampled]


def perplexities(samples: TextSamples, nll_N: Float[ndarray, " N"], tokens_N: Float[ndarray, " N"]) -> Quantities:
    """`gen_ppl`, token-weighted, and `gen_ppl_doc`, document-weighted, of the nats and tokens of each document.

    What is resampled is a sample, or a prompt with its continuations: nats and tokens are summed over these, nats a token averaged.
    """
    nll_NR, tokens_NR = (one.reshape(-1, samples.repeats) for one in (nll_N, tokens_N))
    return {
        "gen_ppl": Resampled(token_weighted, (nll_NR.sum(1), tokens_NR.sum(1)), samples.seeds),
        "gen_ppl_doc": Resampled(exp_mean, ((nll_NR / tokens_NR).mean(1),), samples.seeds),
    }


def _measure(samples: TextSamples, bench: Any) -> Quantities:
    """Of each evaluator; of the first also the order gain, nats a token that it loses where all tokens but the first are shuffled."""
    found = {}
    for number, evaluator in enumerate(bench.evaluators):
        at = f"@{Path(evaluator.name).name}" if number else ""
        read = bench.documents(evaluator, samples)
        nll_N, tokens_N = bench.nll(evaluator, read, samples.name)
        found |= {f"{key}{at}": value for key, value in perplexities(samples, nll_N, tokens_N).items()}
        if number == 0:
            shuffled = _shuffled(read, bench.settings.seeds[0])
            shuffled_N, of_N = bench.nll(evaluator, shuffled, f"{samples.name}, shuffled")
            found["order_gain"] = Resampled(mean, (shuffled_N / of_N - nll_N / tokens_N,), samples.seeds)
    return found


def _shuffled(read: Sequence[Document], seed: int) -> list[Document]:
    rng = np.random.default_rng([seed, 4])
    return [
        Document(ids=(*one.ids[: one.context], *rng.permutation(one.ids[one.context :]).tolist()), context=one.context)
        for one in read
    ]


FLUENCY = Metric(
    measure=_measure,
    part="fluency",
    headings={"gen_ppl": "perplexity"},
    details={"gen_ppl_doc": "perplexity, by document", "order_gain": "order gain"},
    compared=("gen_ppl", "order_gain"),
)

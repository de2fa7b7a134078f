"""Generative perplexity and sample entropy of several samplers at several step counts, beside the validation set.

The one measurement behind `di4c eval gen_ppl` and the closing report of a training run. It knows samplers as callables
and nothing of our models.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from di4c_lm.core.settings import Texts, at_least, check, section, setting
from di4c_lm.measure.flow import Measured, Metric, Row, columns, detectable, difference
from di4c_lm.measure.render.files import Layout
from di4c_lm.measure.render.pictures import Panel
from di4c_lm.measure.render.tables import LEAD, NFE, Column, star, star_said, table, with_detectable, with_differences
from di4c_lm.measure.settings import Measurement
from di4c_lm.measure.statistics.bootstrap import Resampled, exp_mean, mean
from di4c_lm.measure.text.diversity import Windows, corpus_entropy, distinct_n, entropy
from di4c_lm.measure.text.perplexity import Document, token_weighted
from di4c_lm.measure.text.samples import Reader, Reading, Sampler, TextSamples, examples, sampled

DATA = "data"
_COMPARED = ("gen_ppl", "entropy")


@dataclass(frozen=True)
class Baseline:
    """A sampler that needs no network, or no training; `steps` where they are not those of the models."""

    sampler: Sampler
    steps: tuple[int, ...] | None = None


PERPLEXITY = Panel("gen_ppl", "generative perplexity", "lower is more fluent", log=True)
SAMPLE_ENTROPY = Panel("entropy", "sample entropy (nats)", "the validation set is the mark")
LAYOUT = Layout(
    data="validation set",
    panels=(PERPLEXITY, SAMPLE_ENTROPY),
    headings={"gen_ppl": "perplexity", "gen_ppl_doc": "perplexity, by document", "entropy": "entropy"},
    details={
        "corpus_entropy": "corpus entropy",
        "distinct_2": "distinct-2",
        "copied_8": "copied from the training text",
        "num_samples": "samples",
        "seconds": "seconds",
    },
)


@section
class GenPplConfig(Measurement, Reading):
    """Generative perplexity and sample entropy of a run's teacher and student, beside the validation set."""

    OLD_KEYS = {"judge": "evaluator", "judge_batch_size": "evaluator_batch_size"}

    evaluator: str | None = setting(None, "a folder or hub name, e.g. gpt2-large; null: the run's own evaluator")
    seed: int = setting(0, "random seed of sampling, of the choice of validation sequences and of the bootstrap")
    baselines: bool = setting(
        True, "measure n-grams of the training text, and the teacher's marginals with token bigrams, beside the models"
    )
    conditional: bool = setting(False, "continue prompts cut from the validation set; num_samples then has no effect")
    prompts: int = setting(256, "prompts cut from the validation set")
    continuations: int = setting(5, "continuations sampled from each prompt")
    prompt_length: int = setting(0, "tokens in a prompt; 0: 50, or half the samples' length if that is less")
    continuation_length: int = setting(
        0, "tokens in a continuation; 0: 50, or what is left of the samples' length if that is less"
    )

    def __post_init__(self) -> None:
        Measurement.__post_init__(self)
        Reading.__post_init__(self)
        at_least(self, 2, "num_samples", "prompts")
        at_least(self, 1, "continuations")
        at_least(self, 0, "seed", "prompt_length", "continuation_length")

    def unused(self) -> dict[str, str]:
        """What only the conditional form has a use for. (`num_samples` says itself that the other alone reads it.)"""
        names = ("prompts", "continuations", "prompt_length", "continuation_length")
        return {} if self.conditional else dict.fromkeys(names, "where conditional=false")

    def fitted(self, length: int) -> "GenPplConfig":
        """With both lengths of the conditional form set for samples of `length` tokens. Raises `ValueError` where they do not fit."""
        prompt = self.prompt_length or min(50, length // 2)
        check(1 <= prompt < length, "prompt_length", prompt, f"1 to {length - 1}, the samples' length being {length}")
        continuation = self.continuation_length or min(50, length - prompt)
        check(
            continuation <= length - prompt,
            "continuation_length",
            continuation,
            f"1 to {length - prompt}, the samples' length being {length} and the prompts' {prompt}",
        )
        return dataclasses.replace(self, prompt_length=prompt, continuation_length=continuation)


@section
class CompareConfig(GenPplConfig):
    """Generative perplexity and sample entropy of several models in one table, beside the validation set."""

    models: Texts = setting(
        (), "folders, or <name>=<folder>, of runs or of exported models; none: those of the chain of rounds `run`"
    )


def perplexities(
    samples: TextSamples, nll_N: Float[ndarray, " N"], tokens_N: Float[ndarray, " N"]
) -> dict[str, Resampled]:
    """`gen_ppl`, token-weighted, and `gen_ppl_doc`, document-weighted, of the nats and tokens of each document.

    What is resampled is a sample, or a prompt with its continuations: nats and tokens are summed over these, nats a token averaged.
    """
    nll_NR, tokens_NR = (one.reshape(-1, samples.repeats) for one in (nll_N, tokens_N))
    return {
        "gen_ppl": Resampled(token_weighted, (nll_NR.sum(1), tokens_NR.sum(1)), samples.seeds),
        "gen_ppl_doc": Resampled(exp_mean, ((nll_NR / tokens_NR).mean(1),), samples.seeds),
    }


def _measure(samples: TextSamples, bench: Any) -> dict[str, Resampled]:
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


def measure(
    samplers: Mapping[str, Sampler],
    data_ND: Int[Tensor, "N D"],
    reader: Reader,
    baselines: Mapping[str, Baseline] | None = None,
    training: Int[Tensor, "M D"] | None = None,
) -> Measured:
    """Every sampler at every step count, all from the seed `settings.seed`, and the validation set; `reader.settings` say how.

    A row holds model, steps, nfe, gen_ppl (token-weighted), entropy (nats, within a sample, over all its tokens), each with `_low` and
    `_high` of a 95 % bootstrap over samples, num_samples; besides gen_ppl_doc (document-weighted), corpus_entropy, distinct_2,
    judge_tokens, seconds. `baselines` have rows of their own, whose `kind` is baseline, and a row of a model then says which of them it is
    `beaten_by`: those with the lower gen_ppl at the same number of steps, n-grams at any, their whole interval below that of the model.
    With `training`, sequences of the training text, rows have copied_8 too: the share of a sample's windows of 8 tokens that stand there.
    The row "data" has steps 0 and nfe 0.0: as many validation sequences, chosen without replacement.

    In the conditional form (Di4C, section 5.3) samplers continue prompts cut from the validation set. The NLL is of the continuation given
    its prompt, entropy and diversity are of the continuations alone, intervals resample prompts with all their continuations, and the row
    "data" continues each prompt as the validation set does.

    Raises `ValueError`: fewer than 2 validation sequences, a sampler that returns another number or length of samples, unfinished ones or
    other prompts, text longer than the evaluator reads.
    """
    if DATA in samplers:
        raise ValueError(f"a sampler must not be called {DATA!r}: that is the row of the validation set")
    settings: Any = reader.settings
    length, repeats, prompt, end = data_ND.shape[1], 1, 0, data_ND.shape[1]
    if settings.conditional:
        settings = settings.fitted(length)
        prompt, repeats = settings.prompt_length, settings.continuations
        end = prompt + settings.continuation_length
    if len(data_ND) < 2:
        raise ValueError(f"{len(data_ND)} validation sequences are too few: an interval needs at least 2")
    order_N = torch.randperm(len(data_ND), generator=torch.Generator().manual_seed(settings.seed))
    chosen = data_ND[order_N[: settings.prompts if settings.conditional else settings.num_samples]]
    prompts_NP = chosen[:, :prompt].repeat_interleave(repeats, 0)
    given = prompts_NP if settings.conditional else settings.num_samples

    every = {name: Baseline(sampler) for name, sampler in samplers.items()} | dict(baselines or {})

    def samples() -> Iterator[TextSamples]:
        yield TextSamples(name=DATA, kind="data", tokens=chosen[:, :end], context=prompt)
        how: dict[str, Any] = {"length": length, "seeds": (settings.seed,), "context": prompt, "repeats": repeats}
        for name, source in every.items():
            steps = settings.steps if source.steps is None else source.steps
            for one in sampled({name: source.sampler}, given, **how, steps=steps, progress=reader.progress):
                if settings.conditional and not torch.equal(one.tokens[:, :prompt].cpu(), prompts_NP.cpu()):
                    raise ValueError(f"sampler {one.name!r} at {one.steps} steps changed its prompts")
                kind = "model" if name in samplers else "baseline"
                yield dataclasses.replace(one, tokens=one.tokens[:, :end], kind=kind)

    known = None if training is None else Windows.of(training)
    resampling = {"resamples": settings.bootstrap, "seed": settings.seed}
    rows: list[Row] = []
    shown: list[Row] = []
    quantities: dict[tuple[str, int], dict[str, Resampled]] = {}
    for one in samples():
        shown += examples(one, reader.tokenizer)
        nll_N, tokens_N = reader.nll(reader.evaluators[0], reader.documents(reader.evaluators[0], one), one.name)
        found = quantities[one.name, one.steps] = perplexities(one, nll_N, tokens_N) | entropy(one, reader)
        if known is not None and one.own.shape[1] >= known.length:
            copied_NR = known.copied(one.own).reshape(-1, one.repeats)
            found["copied_8"] = Resampled(mean, (copied_NR.mean(1),), one.seeds)
        row: Row = {"model": one.name, "steps": one.steps, "nfe": float(one.nfe), **columns(found, **resampling)}
        row |= {"kind": "baseline"} if one.kind == "baseline" else {}
        row |= {"num_samples": len(one.tokens), "corpus_entropy": corpus_entropy(one.own)}
        row |= {"distinct_2": distinct_n(one.own, 2) if one.own.shape[1] >= 2 else 1.0}
        rows.append(row | {"judge_tokens": int(tokens_N.sum()), "seconds": round(one.seconds, 3)})
    if baselines:
        against = [row for row in rows if row.get("kind") == "baseline"]
        rows = [row | ({"beaten_by": beaten_by(row, against)} if row["model"] in samplers else {}) for row in rows]
    comparisons = [
        difference(
            metric, {"of": a, "minus": b, "steps": n}, quantities[a, n][metric], quantities[b, n][metric], **resampling
        )
        for (b, a) in combinations(samplers, 2)
        for n in settings.steps
        for metric in _COMPARED
    ]
    return Measured(rows=rows, comparisons=comparisons, examples=shown)


def beaten_by(row: Row, baselines: Sequence[Row]) -> list[str]:
    """The names of the baselines with a lower generative perplexity, by their intervals; those that take steps at the same number."""
    better = [
        one
        for one in baselines
        if one["gen_ppl_high"] < row["gen_ppl_low"] and (one["nfe"] == 0 or one["steps"] == row["steps"])
    ]
    return [one["model"] for one in better]


def verdict(rows: Sequence[Row]) -> str:
    """A sentence a model: at which numbers of steps counting beats it; nothing without baselines."""
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows if "beaten_by" in row):
        of_model = [row for row in rows if row["model"] == name]
        beaten = {row["steps"]: row["beaten_by"] for row in of_model if row["beaten_by"]}
        by = ", ".join(dict.fromkeys(one for names in beaten.values() for one in names))
        if len(beaten) == len(of_model):
            lines.append(f"counting beats {name} at every number of steps, by generative perplexity: {by}")
        elif beaten:
            lines.append(
                f"counting beats {name} at {', '.join(map(str, beaten))} steps, by generative perplexity: {by}"
            )
        else:
            lines.append(f"no n-gram and no token bigram beats {name} by generative perplexity")
    held_out = {row["model"]: row["validation_ppl"] for row in rows if "validation_ppl" in row}
    if lines and held_out:
        bounded = {row["model"] for row in rows if "beaten_by" in row}
        said = [f"{name} {'at most ' if name in bounded else ''}{value:.4g}" for name, value in held_out.items()]
        lines.append(f"perplexity of validation text: {', '.join(said)}")
    return "\n".join(lines)


def gen_ppl_table(found: Measured) -> str:
    """Plain text for a terminal: a line a row with its 95 % intervals, then the tested differences."""
    columns: list[Column] = [
        *LEAD,
        NFE,
        ("gen. perplexity", lambda row: _short(row["gen_ppl"]) + star(row, "gen_ppl")),
        ("95 %", lambda row: f"{_short(row['gen_ppl_low'])} to {_short(row['gen_ppl_high'])}"),
        ("entropy", lambda row: f"{row['entropy']:.3f}"),
        ("95 %", lambda row: f"{row['entropy_low']:.3f} to {row['entropy_high']:.3f}"),
        ("samples", lambda row: str(row["num_samples"])),
    ]
    said = verdict(found.rows)
    text = with_differences(table(found.rows, columns), found.comparisons)
    return with_detectable(text, detectable_of(found)) + (f"\n\n{said}" if said else "") + star_said(found.rows)


def detectable_of(found: Measured) -> list[Row]:
    """See `flow.detectable`."""
    return detectable(found.comparisons, [row for row in found.rows if row.get("kind") != "baseline"], _COMPARED)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"

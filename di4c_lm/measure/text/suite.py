"""Fluency, diversity and distance to held-out text of samples, canaries among them, as one table with tested differences.

It knows samples as tokens and nothing of our models. Axes: N samples (S seeds, one after the other), M reference documents, D tokens.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from di4c_lm.measure.statistics import bootstrap
from di4c_lm.measure.statistics.two_sample import distance_difference, euclidean, half_squared, standardise, two_sample
from di4c_lm.measure.text.diversity import corpus_entropy, distinct_n, near_duplicates, repetition, sample_entropy
from di4c_lm.measure.text.encoding import documents
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.features import Encoded, encode, hand_features
from di4c_lm.measure.text.mauve import mauve_score
from di4c_lm.measure.text.perplexity import Document, context_limit, score, token_weighted
from di4c_lm.measure.text.self_bleu import self_bleu
from di4c_lm.measure.text.suite_settings import ReportConfig
from di4c_lm.measure.text.verdict import Band, flags, ranked, uncaught

REAL = "held-out text"


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """Samples of one model at one step count, `seeds` blocks of equally many. `tail`: of its sampler, from `tail_probe`."""

    name: str
    kind: Literal["model", "canary", "data"]
    tokens: Int[Tensor, "N D"]
    steps: int = 0
    nfe: float = 0.0
    seeds: int = 1
    noise: str = "float64"
    tail: dict[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True, kw_only=True)
class Suite:
    """`rows`: one a cell. `comparisons`: one a pair of models, step count and metric. `alarms`: canaries that were not caught."""

    rows: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    alarms: list[str]


@final
@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What is kept of a cell to compare it with others; one entry a document."""

    cell: Cell
    arrays: dict[str, tuple[bootstrap.Statistic, tuple[ndarray, ...]]]
    vectors: dict[str, Float[ndarray, "N F"]]


def split_held_out(
    data_ND: Int[Tensor, "N D"], *, references: int, num_real: int, seed: int
) -> tuple[Int[Tensor, "M D"], Int[Tensor, "K D"]]:
    """Held-out sequences in random order: `references` to compare with (0: half), and at most `num_real` others, the real text.

    Raises `ValueError` where fewer than 8 would be left on either side.
    """
    num_all = len(data_ND)
    wanted = references or num_all // 2
    if wanted < 8 or num_all - wanted < 8:
        raise ValueError(
            f"references={references} is impossible: there are {num_all} held-out sequences, and at least 8 are needed as references "
            "and 8 more as the real text that is measured beside the samples"
        )
    order = torch.randperm(num_all, generator=torch.Generator().manual_seed(seed))
    return data_ND[order[:wanted]], data_ND[order[wanted : wanted + num_real]]


def measure_suite(
    cells: Iterable[Cell],
    real_KD: Int[Tensor, "K D"],
    reference_MD: Int[Tensor, "M D"],
    *,
    tokenizer: Any,
    evaluators: Sequence[Evaluator],
    encoder: Evaluator,
    config: ReportConfig,
    progress: bool = True,
) -> Suite:
    """Every cell, and the real text, against the reference, in those of the parts fluency, diversity, distribution that `config` names.

    Raises `ValueError`: no or empty samples, samples of another length than the reference, no evaluator, unfinished samples, text longer
    than an evaluator reads, too few documents.
    """
    if not evaluators:
        raise ValueError("evaluators=() is impossible: at least one evaluator is needed")
    bench = _Bench(
        tokenizer=tokenizer,
        evaluators=tuple(evaluators),
        encoder=encoder,
        config=config,
        reference=reference_MD,
        progress=progress,
    )
    real = Cell(name=REAL, kind="data", tokens=real_KD)
    facts, rows = [], []
    for cell in (real, *cells):
        found, row = bench.measure(cell)
        facts.append(found)
        rows.append(row)
    length = reference_MD.shape[1]
    band = Band.of(sample_entropy(reference_MD).cpu().numpy(), repetition(reference_MD, min(4, length)).cpu().numpy())
    rows = ranked([row | {"flags": flags(row, rows[0], band)} for row in rows])
    return Suite(rows=rows, comparisons=bench.comparisons(facts), alarms=uncaught(rows))


@final
@dataclass(frozen=True, kw_only=True)
class _Bench:
    tokenizer: Any
    evaluators: tuple[Evaluator, ...]
    encoder: Evaluator
    config: ReportConfig
    reference: Int[Tensor, "M D"]
    progress: bool

    def measure(self, cell: Cell) -> tuple[_Facts, dict[str, Any]]:
        _check(cell, self.reference.shape[1])
        row: dict[str, Any] = {"model": cell.name, "kind": cell.kind, "steps": cell.steps, "nfe": float(cell.nfe)}
        row |= {"num_samples": len(cell.tokens), "seeds": cell.seeds, "noise": cell.noise, **cell.tail}
        arrays, vectors = {}, {}
        if "fluency" in self.config.parts:
            arrays |= self.fluency(cell)
        if "diversity" in self.config.parts:
            arrays |= {"entropy": (_mean, (sample_entropy(cell.tokens).cpu().numpy(),))}
        for key, (statistic, of) in arrays.items():
            seed = self.config.seeds[0]
            resamples = {"resamples": self.config.bootstrap, "seed": seed, "groups": cell.seeds}
            found = bootstrap.interval(statistic, of, **resamples)
            name, at, evaluator = key.partition("@")
            for end, value in (("", found.estimate), ("_low", found.low), ("_high", found.high)):
                row[f"{name}{end}{at}{evaluator}"] = value
        if "diversity" in self.config.parts:
            row |= self.diversity(cell)
        if "distribution" in self.config.parts:
            vectors = self.vectors(cell.tokens)
            row |= self.distances(cell, vectors)
        return _Facts(cell=cell, arrays=arrays, vectors=vectors), row

    def read(self, evaluator: Evaluator, tokens_ND: Int[Tensor, "N D"]) -> list[Document]:
        limit = context_limit(evaluator.model) if self.config.overflow == "truncate" else None
        return documents(
            tokens_ND,
            tokenizer=self.tokenizer,
            evaluator_tokenizer=evaluator.tokenizer,
            retokenize=self.config.retokenize,
            limit=limit,
        )

    def nll(self, evaluator: Evaluator, read: list[Document], name: str) -> tuple[ndarray, ndarray]:
        scores = score(
            evaluator.model,
            read,
            batch_size=self.config.evaluator_batch_size,
            eos=self.config.eos,
            eos_id=evaluator.tokenizer.eos_token_id,
            progress=f"scoring {name}" if self.progress else None,
        )
        return scores.nll, scores.tokens.astype(np.float64)

    def fluency(self, cell: Cell) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for number, evaluator in enumerate(self.evaluators):
            at = f"@{Path(evaluator.name).name}" if number else ""
            read = self.read(evaluator, cell.tokens)
            nll_N, tokens_N = self.nll(evaluator, read, cell.name)
            found[f"gen_ppl{at}"] = (token_weighted, (nll_N, tokens_N))
            found[f"gen_ppl_doc{at}"] = (lambda mean_nll: np.exp(mean_nll.mean(-1)), (nll_N / tokens_N,))
            if number == 0:
                shuffled = _shuffled(read, self.config.seeds[0])
                shuffled_N, of_N = self.nll(evaluator, shuffled, f"{cell.name}, shuffled")
                found["order_gain"] = (_mean, (shuffled_N / of_N - nll_N / tokens_N,))
        return found

    def diversity(self, cell: Cell) -> dict[str, Any]:
        own, length = cell.tokens, cell.tokens.shape[1]
        found = {"corpus_entropy": corpus_entropy(own)}
        found |= {f"distinct_{n}": distinct_n(own, min(n, length)) for n in (1, 2, 3)}
        found["rep_4"] = float(repetition(own, min(4, length)).mean())
        found["near_duplicates"] = float(near_duplicates(own, n=min(5, length)).double().mean())
        if self.config.self_bleu_samples:
            some = own[: self.config.self_bleu_samples].tolist()
            texts = [self.tokenizer.decode(ids) for ids in some]
            found["self_bleu"] = float(self_bleu(texts).mean())
            if self.config.self_bleu_legacy:
                found["self_bleu_legacy"] = float(self_bleu(texts, legacy=True).mean())
        return found

    def encoded(self, tokens_ND: Int[Tensor, "N D"]) -> Encoded:
        label = "features" if self.progress else None
        batch_size = self.config.evaluator_batch_size
        return encode(self.encoder, self.read(self.encoder, tokens_ND), batch_size=batch_size, progress=label)

    def vectors(self, tokens_ND: Int[Tensor, "N D"]) -> dict[str, Float[ndarray, "N F"]]:
        read = self.encoded(tokens_ND)
        hand = hand_features(tokens_ND, self.reference)
        return {"gradient_moment": read.score, "energy": read.mean, "energy_hand": hand, "mauve": read.last}

    @functools.cached_property
    def reference_vectors(self) -> dict[str, Float[ndarray, "M F"]]:
        return self.vectors(self.reference)

    def distance(self, metric: str, *samples: dict[str, Float[ndarray, "N F"]]) -> Float[ndarray, "K K"]:
        """Between all documents of the samples, then the reference."""
        by = self.reference_vectors[metric]
        pooled = standardise(np.concatenate([*(one[metric] for one in samples), by]), by)
        return half_squared(pooled) / pooled.shape[1] if metric == "gradient_moment" else euclidean(pooled)

    def distances(self, cell: Cell, vectors: dict[str, Float[ndarray, "N F"]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for metric in ("gradient_moment", "energy", "energy_hand"):
            one = two_sample(
                self.distance(metric, vectors),
                len(cell.tokens),
                permutations=self.config.permutations,
                resamples=self.config.bootstrap,
                seed=self.config.seeds[0],
                groups=cell.seeds,
            )
            found |= {
                metric: one.estimate,
                f"{metric}_low": one.low,
                f"{metric}_high": one.high,
                f"{metric}_p": one.p_value,
            }
        seeds, clusters = self.config.mauve_seeds, self.config.mauve_clusters
        mauve = mauve_score(vectors["mauve"], self.reference_vectors["mauve"], seeds=seeds, clusters=clusters)
        return found | {"mauve": mauve.estimate, "mauve_sd": mauve.deviation}

    def comparisons(self, facts: list[_Facts]) -> list[dict[str, Any]]:
        models = [one for one in facts if one.cell.kind == "model"]
        found = []
        for b, a in combinations(models, 2):
            if a.cell.steps != b.cell.steps or a.cell.tokens.shape != b.cell.tokens.shape:
                continue
            base = {"of": a.cell.name, "minus": b.cell.name, "steps": a.cell.steps}
            common = {"resamples": self.config.bootstrap, "seed": self.config.seeds[0]}
            tested = [
                (key, bootstrap.paired_difference(statistic, of, b.arrays[key][1], **common))
                for key, (statistic, of) in a.arrays.items()
                if not key.startswith("gen_ppl_doc")
            ]
            for metric in ("gradient_moment", "energy", "energy_hand") if a.vectors else ():
                between = self.distance(metric, a.vectors, b.vectors)
                more = {"permutations": self.config.permutations, **common}
                tested.append((metric, distance_difference(between, len(a.cell.tokens), **more)))
            for metric, one in tested:
                value = {"difference": one.estimate, "difference_low": one.low, "difference_high": one.high}
                found.append({"metric": metric, **base, **value, "p_value": one.p_value})
        return found


def _mean(values: Float[ndarray, "*R N"]) -> ndarray:
    return np.asarray(values.mean(-1))


def _check(cell: Cell, length: int) -> None:
    where = f"{cell.name!r} at {cell.steps} steps" if cell.steps else repr(cell.name)
    num_samples, found = cell.tokens.shape
    if num_samples == 0 or found == 0:
        raise ValueError(
            f"{where} gave 0 samples or empty ones, of shape {(num_samples, found)}: nothing can be measured"
        )
    if found != length:
        raise ValueError(f"{where} gave samples of {found} tokens, the held-out text has {length}: lengths must agree")


def _shuffled(read: Sequence[Document], seed: int) -> list[Document]:
    """The same tokens after the first, in random order."""
    rng = np.random.default_rng([seed, 4])
    return [
        Document(ids=(*one.ids[: one.context], *rng.permutation(one.ids[one.context :]).tolist()), context=one.context)
        for one in read
    ]

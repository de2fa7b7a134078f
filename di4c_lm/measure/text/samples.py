"""Samples of text: where they come from, and how evaluators read them. Axes: N samples, M reference documents, D tokens."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from di4c_lm.core.settings import at_least, section, setting
from di4c_lm.measure import flow
from di4c_lm.measure.flow import Samples
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.perplexity import Document, EosRule, context_limit, documents, score
from di4c_lm.measure.text.scores import KeptScores
from di4c_lm.samplers.trajectory import name_of

Sampler: TypeAlias = Callable[[Any, int, int], tuple[Tensor, float]]
"""(number of samples N or prompts Int[N P], steps, seed) -> (tokens Int[N D], which begin with the prompts, nfe a sample)."""
TextModel: TypeAlias = Any
"""A `domains.text.model.TextModel`, or what has its denoiser, process, tokenizer, length (D, tokens a sequence) and `sample`."""
_EXAMPLES = 2  # shown of a model and step count


@dataclass(frozen=True, kw_only=True)
class TextRun:
    """A finished run, or a chain of rounds, with what it is measured by: its validation set and an evaluator's folder or hub name."""

    settings: Mapping[str, Any]  # plain values, for the manifest
    folder: Path
    models: Mapping[str, TextModel]  # "teacher", if there was one, and "student", or those of a chain's rounds
    paths: Mapping[str, Path]  # where each was loaded from
    validation: Int[Tensor, "N D"]
    evaluator: str
    parts: Int[Tensor, "N D"] | None = None  # of a run on records with prompts: see `Batch.parts`, one record a row
    training: Int[Tensor, "M D"] | None = None  # the first of the training text; runs of earlier versions have none
    how: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # name of a model to what its `sample` takes for it
    cache: Path | None = None  # where evaluators that are fetched lie, and what they said of texts

    @property
    def sampler(self) -> str:
        """By name; of each model where they have several."""
        names = {model: name_of(how["sampler"]) for model, how in self.how.items() if "sampler" in how}
        if len(set(names.values())) > 1:
            return ", ".join(f"{model} {name}" for model, name in names.items())
        return next(iter(names.values()), "ancestral")

    def some_validation(self, count: int, seed: int) -> Int[Tensor, "M D"]:
        """At most `count` validation sequences, chosen at random: the first ones are of a few documents, and say little of the others."""
        order_N = torch.randperm(len(self.validation), generator=torch.Generator().manual_seed(seed))
        return self.validation[order_N[:count]]

    @property
    def student(self) -> Any:
        """What was trained, in a chain the last."""
        return list(self.models.values())[-1]

    @property
    def teacher(self) -> Any:
        """What it was trained from. Raises `ValueError` where there was none."""
        if "teacher" not in self.models:
            raise ValueError(f"{self.folder}: expected a model 'teacher', found {', '.join(self.models)}")
        return self.models["teacher"]


@section
class Reading:
    """How an evaluator reads samples."""

    evaluator_batch_size: int = setting(32, "documents in a batch that an evaluator reads")
    evaluator_download: bool = setting(
        False, "fetch the evaluator smollm2 (93 MB, Apache-2.0) into the cache where it is absent"
    )
    eos: EosRule = setting(
        "all", "tokens that count: all | first (up to the first EOS) | mdlm (all but EOS after the first)"
    )
    retokenize: Literal["auto", "always"] = setting(
        "auto", "auto: token ids are read as they are where the vocabularies agree, else text; always: text"
    )
    overflow: Literal["error", "truncate"] = setting("error", "what happens to text longer than an evaluator reads")

    def __post_init__(self) -> None:
        at_least(self, 1, "evaluator_batch_size")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class TextSamples(Samples):
    """Tokens of one model at one step count; `repeats` neighbours share a prompt of `context` tokens.

    `noise` is the dtype of the sampler's, `tail` what `canaries.tail_probe` says of it.
    """

    tokens: Int[Tensor, "N D"]
    context: int = 0
    repeats: int = 1
    noise: str = "float64"
    tail: Mapping[str, float] = field(default_factory=dict)

    @property
    def own(self) -> Int[Tensor, "N T"]:
        """The tokens that were sampled, without those of the prompt."""
        return self.tokens[:, self.context :]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """How `evaluators` read what `tokenizer` writes; what they say of a text is kept in `cache`."""

    tokenizer: Any
    evaluators: Sequence[Evaluator]
    settings: Reading
    progress: bool = True
    cache: Path | None = None

    def documents(self, evaluator: Evaluator, samples: TextSamples) -> list[Document]:
        """Samples as the evaluator reads them."""
        limit = context_limit(evaluator.model) if self.settings.overflow == "truncate" else None
        return documents(
            samples.tokens,
            tokenizer=self.tokenizer,
            evaluator_tokenizer=evaluator.tokenizer,
            context=samples.context,
            retokenize=self.settings.retokenize,
            limit=limit,
        )

    def nll(
        self, evaluator: Evaluator, read: list[Document], name: str
    ) -> tuple[Float[ndarray, " N"], Float[ndarray, " N"]]:
        """Nats and number of scored tokens of each document; `name` labels the progress bar."""
        kept = KeptScores.of(self.cache, evaluator, self.settings.eos)
        found_N2 = np.full((len(read), 2), np.nan) if kept is None else kept.find(read)
        left = np.flatnonzero(np.isnan(found_N2[:, 0])).tolist()
        if left or not read:
            unread = [read[i] for i in left]
            nll_and_tokens = score(
                evaluator.model,
                unread,
                batch_size=self.settings.evaluator_batch_size,
                eos=self.settings.eos,
                eos_id=evaluator.tokenizer.eos_token_id,
                progress=f"scoring {name}" if self.progress else None,
                on_batch=None if kept is None else lambda batch, two: kept.keep([unread[i] for i in batch], two),
            )
            found_N2[left] = np.stack(nll_and_tokens, 1)
        return found_N2[:, 0], found_N2[:, 1]


def examples(samples: TextSamples, tokenizer: Any) -> list[dict[str, Any]]:
    """The first samples as rows of a report: model, steps, prompt and text."""
    shown_ED, cut = samples.tokens[:_EXAMPLES].tolist(), samples.context
    return [
        {
            "model": samples.name,
            "steps": samples.steps,
            "prompt": tokenizer.decode(one[:cut]),
            "text": tokenizer.decode(one[cut:]),
        }
        for one in shown_ED
    ]


def sampler_of(model: TextModel, batch_size: int, **how: Any) -> Sampler:
    """A model as a sampler; `how` goes to its `sample`."""

    def sampler(given: int | Int[Tensor, "N P"], steps: int, seed: int) -> tuple[Tensor, float]:
        if isinstance(given, int):
            return model.sample_tokens(given, steps, seed=seed, batch_size=batch_size, **how)
        x_ND = torch.full((len(given), model.length), model.mask_id)
        x_ND[:, : given.shape[1]] = given
        return model.sample_tokens(len(x_ND), steps, seed=seed, batch_size=batch_size, x_init=x_ND, **how)

    return sampler


def sampled(
    samplers: Mapping[str, Sampler],
    given: int | Int[Tensor, "N P"],
    *,
    length: int,
    steps: Sequence[int],
    seeds: Sequence[int],
    progress: bool,
    **facts: Any,
) -> Iterator[TextSamples]:
    """What every sampler makes at every step count, for all seeds in turn, of what it is given: a number of samples, or prompts.

    `facts` are further fields of `TextSamples`. Raises `ValueError` for another number of samples, or of another `length`.
    """
    given_to = {name: functools.partial(sampler, given) for name, sampler in samplers.items()}
    shape = (given if isinstance(given, int) else len(given), length)
    for batches, how in flow.sampled(given_to, shape, steps=steps, seeds=seeds, progress=progress):
        yield TextSamples(tokens=torch.cat(batches), **how, **facts)

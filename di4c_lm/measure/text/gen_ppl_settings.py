"""What `eval/gen_ppl.py` may be told, typed. Checks itself like `di4c_lm.config`."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Strict
from pydantic.dataclasses import dataclass

from di4c_lm.core.settings import STRICT, Ints, check
from di4c_lm.domains.text.settings import EvalConfig
from di4c_lm.measure.text.perplexity import EosRule

Words = Annotated[tuple[str, ...], Strict(strict=False)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Scoring:
    """How an evaluator reads samples."""

    batch_size: int = 32  # documents a forward pass
    eos: EosRule = "all"  # which tokens count: see `perplexity.scored_targets`
    retokenize: Literal["auto", "always"] = "auto"  # auto: token ids are read as they are where the vocabularies agree
    overflow: Literal["error", "truncate"] = "error"  # what happens to text longer than the evaluator reads

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, "batch_size", self.batch_size, "a value of at least 1")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prompting:
    """The conditional form: continuations of prompts cut from held-out text. A length of 0: 50 tokens, or what fits."""

    prompts: int = 256
    continuations: int = 5  # a prompt
    prompt_length: int = 0  # tokens
    continuation_length: int = 0  # tokens

    def __post_init__(self) -> None:
        for name in ("prompts", "continuations"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "a value of at least 1")
        for name in ("prompt_length", "continuation_length"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "a value of at least 0")
        check(self.prompts >= 2, "prompts", self.prompts, "at least 2, for an interval over prompts")

    def fit(self, length: int) -> "Prompting":
        """With both lengths set for samples of `length` tokens. Raises `ValueError` where they do not fit."""
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GenPplConfig:
    """Generative perplexity and sample entropy of a run's teacher and student, beside held-out text.

    run                  a run's folder; null: the newest under `outputs` that has a student
    outputs              where runs live
    report               folder for gen_ppl.json, .csv and .png; null: <run>/report
    evaluator                a folder or hub name, e.g. gpt2-large; null: the run's own evaluator
    steps                sampling steps, e.g. [1,2,4]
    num_samples          samples a model and step count
    batch_size           sequences sampled at once
    seed                 of sampling, of the choice of held-out text and of resampling
    bootstrap            resamples behind each 95 % interval and test
    evaluator_batch_size     documents the evaluator reads at once
    eos                  tokens that count: all | first (up to the first EOS) | mdlm (all but the second EOS and later)
    retokenize           auto (through text only if the evaluator has another vocabulary) | always
    overflow             text longer than the evaluator's context: error | truncate
    conditional          true: continue prompts cut from held-out text; num_samples is then prompts x continuations
    prompts              how many prompts
    continuations        of each prompt
    prompt_length        tokens; 0: 50, or half the samples' length if that is less
    continuation_length  tokens; 0: 50, or what is left of the samples' length if that is less
    device               auto | cpu | cuda
    """

    run: str | None = None
    outputs: str = "outputs"
    report: str | None = None
    evaluator: str | None = None
    steps: Ints = (1, 2, 4, 8, 16)
    num_samples: int = 256
    batch_size: int = 64
    seed: int = 0
    bootstrap: int = 1000
    evaluator_batch_size: int = 32
    eos: EosRule = "all"
    retokenize: Literal["auto", "always"] = "auto"
    overflow: Literal["error", "truncate"] = "error"
    conditional: bool = False
    prompts: int = 256
    continuations: int = 5
    prompt_length: int = 0
    continuation_length: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        check(
            self.evaluator_batch_size >= 1, "evaluator_batch_size", self.evaluator_batch_size, "a value of at least 1"
        )
        check(self.seed >= 0, "seed", self.seed, "a value of at least 0")
        check(len(set(self.steps)) == len(self.steps), "steps", self.steps, "step counts that differ")
        for part in (self.evaluation, self.scoring, self.prompting):
            part()

    def evaluation(self) -> EvalConfig:
        """The part that says what is sampled."""
        return EvalConfig(
            steps=self.steps,
            num_samples=self.num_samples,
            batch_size=self.batch_size,
            seed=self.seed,
            bootstrap=self.bootstrap,
        )

    def scoring(self) -> Scoring:
        """The part that says how the evaluator reads."""
        return Scoring(
            batch_size=self.evaluator_batch_size, eos=self.eos, retokenize=self.retokenize, overflow=self.overflow
        )

    def prompting(self) -> Prompting:
        """The part that says how prompts are cut."""
        return Prompting(
            prompts=self.prompts,
            continuations=self.continuations,
            prompt_length=self.prompt_length,
            continuation_length=self.continuation_length,
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CompareConfig(GenPplConfig):
    """Generative perplexity and sample entropy of several models in one table, beside held-out text.

    models               folders, or <name>=<folder>, of runs or of exported models; none: those of the chain of rounds `run`
    run                  the run or chain whose held-out text and evaluator are used; null: the newest run under `outputs`

    The other keys are those of eval/gen_ppl.py.
    """

    models: Words = ()

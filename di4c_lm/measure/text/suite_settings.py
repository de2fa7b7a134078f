"""What `eval/report.py` and its parts may be told, typed. Checks itself like `di4c_lm.config`."""

from typing import Literal

from pydantic.dataclasses import dataclass

from di4c_lm.core.settings import STRICT, Ints, check
from di4c_lm.measure.text.gen_ppl_settings import Scoring, Words
from di4c_lm.measure.text.perplexity import EosRule

PARTS = ("fluency", "diversity", "distribution", "likelihood", "mixture", "cost")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ReportConfig:
    """The whole evaluation of a run's models, with canaries: report.json, .csv, .png and .html.

    run                    a run's folder; null: the newest under `outputs` that has a student
    outputs                where runs live
    models                 names of the run's models, or folders, or <name>=<folder>, of runs or exported models; []: the run's own
    report                 folder of the report; null: <run>/report
    parts                  of: fluency, diversity, distribution, likelihood, mixture, cost
    steps                  sampling steps, e.g. [1,2,4]
    num_samples            samples a model, step count and seed
    references             held-out sequences to compare with; 0: half of them, the other half being the real text that is measured too
    seeds                  of sampling; several: intervals are over seeds and documents, and samples of all seeds are pooled
    sampler                a name of di4c_lm.samplers.registry
    grid                   uniform, cosine, optimised, fewest
    noise                  exact | legacy_fp32 (the published draws; flagged)
    batch_size             sequences sampled at once
    bootstrap              resamples behind each 95 % interval
    permutations           exchanges behind each permutation test
    canaries               true: measure samplers that must fail, and say whether they did
    evaluators                 folders or hub names, e.g. [gpt2-large,<dir>]; []: the run's own; the first also tests the order of tokens
    features               the model behind MAUVE, energy and gradient moment: folder or hub name; null: the first evaluator
    evaluator_batch_size       documents an evaluator reads at once
    eos                    tokens that count: all | first (up to the first EOS) | mdlm (all but the second EOS and later)
    retokenize             auto (through text only if the evaluator has another vocabulary) | always
    overflow               text longer than an evaluator's context: error | truncate
    mauve_seeds            of MAUVE's clustering
    mauve_clusters         0: a tenth of the samples
    self_bleu_samples      samples a row in Self-BLEU, whose cost is their square; 0: none
    self_bleu_legacy       true: the published form over characters too (slow)
    likelihood_sequences   held-out sequences whose likelihood is bounded
    likelihood_draws       times drawn a sequence
    zero_shot              a folder of .txt (a document a line) or .jsonl ({"text": ...}) files, each a set; null: none
    lambada                such a file, whose documents' last words are predicted; null: the held-out sequences
    lambdas                draws of λ that stand for a mixture (a codebook not larger is enumerated)
    mixture_steps          step count of the samples with λ resampled, frozen, averaged
    cost_batches           batch sizes that are timed
    cost_repeats           times each
    device                 auto | cpu | cuda
    """

    run: str | None = None
    outputs: str = "outputs"
    models: Words = ()
    report: str | None = None
    parts: Words = PARTS
    steps: Ints = (1, 2, 4, 8, 16)
    num_samples: int = 128
    references: int = 0
    seeds: Ints = (0,)
    sampler: str = "ancestral"
    grid: str = "uniform"
    noise: Literal["exact", "legacy_fp32"] = "exact"
    batch_size: int = 64
    bootstrap: int = 1000
    permutations: int = 999
    canaries: bool = True
    evaluators: Words = ()
    features: str | None = None
    evaluator_batch_size: int = 32
    eos: EosRule = "all"
    retokenize: Literal["auto", "always"] = "auto"
    overflow: Literal["error", "truncate"] = "error"
    mauve_seeds: Ints = (0, 1, 2, 3, 4)
    mauve_clusters: int = 0
    self_bleu_samples: int = 32
    self_bleu_legacy: bool = False
    likelihood_sequences: int = 64
    likelihood_draws: int = 8
    zero_shot: str | None = None
    lambada: str | None = None
    lambdas: int = 16
    mixture_steps: int = 2
    cost_batches: Ints = (1, 8)
    cost_repeats: int = 3
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        least = {"num_samples": 8, "batch_size": 1, "bootstrap": 1, "permutations": 19, "evaluator_batch_size": 1}
        least |= {"likelihood_sequences": 2, "likelihood_draws": 1, "lambdas": 2, "mixture_steps": 1, "cost_repeats": 1}
        least |= {"references": 0, "mauve_clusters": 0, "self_bleu_samples": 0}
        for name, low in least.items():
            check(getattr(self, name) >= low, name, getattr(self, name), f"a value of at least {low}")
        for name, low in {"steps": 1, "seeds": 0, "mauve_seeds": 0, "cost_batches": 1}.items():
            value = getattr(self, name)
            check(
                value and min(value) >= low and len(set(value)) == len(value),
                name,
                value,
                f"distinct numbers of at least {low}",
            )
        check(self.parts and set(self.parts) <= set(PARTS), "parts", self.parts, f"some of {', '.join(PARTS)}")
        check(self.self_bleu_samples != 1, "self_bleu_samples", 1, "0, or at least 2")

    def scoring(self) -> Scoring:
        """The part that says how evaluators read."""
        return Scoring(
            batch_size=self.evaluator_batch_size, eos=self.eos, retokenize=self.retokenize, overflow=self.overflow
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DiversityConfig(ReportConfig):
    """Diversity of a run's samples beside held-out text: entropies, distinct-n, repetition, near-duplicates, Self-BLEU.

    The keys are those of eval/report.py; these matter: run, models, steps, num_samples, references, seeds, bootstrap, canaries,
    evaluators (for the test of order), self_bleu_samples, self_bleu_legacy, report.
    """

    parts: Words = ("fluency", "diversity")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistributionConfig(ReportConfig):
    """Distance of a run's samples from held-out text: MAUVE, energy distances, gradient moment, each tested.

    The keys are those of eval/report.py; these matter: run, models, steps, num_samples, references, seeds, permutations, canaries,
    features, evaluators, mauve_seeds, mauve_clusters, report.
    """

    parts: Words = ("distribution",)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LikelihoodConfig(ReportConfig):
    """Likelihood of held-out text and zero-shot sets (bounds), and last words predicted.

    The keys are those of eval/report.py; these matter: run, models, steps, likelihood_sequences, likelihood_draws, lambdas, zero_shot,
    lambada, bootstrap, report.
    """

    parts: Words = ("likelihood",)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MixtureConfig(ReportConfig):
    """What a mixture student's λ carries: total correlation captured, and samples with λ resampled, frozen, averaged.

    The keys are those of eval/report.py; these matter: run, models, mixture_steps, lambdas, num_samples, likelihood_sequences, evaluators,
    bootstrap, report.
    """

    parts: Words = ("mixture",)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CostConfig(ReportConfig):
    """Cost of sampling: NFE, tokens a second, latency by batch size with its spread, peak memory.

    The keys are those of eval/report.py; these matter: run, models, steps, cost_batches, cost_repeats, device, report.
    """

    parts: Words = ("cost",)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CompareReportsConfig:
    """Rows of several result files in one table, refused where evaluators, noise dtypes, lengths or tokenizers differ.

    files    gen_ppl.json or report.json files, at least 2
    force    true: show them all the same, under a warning
    """

    files: Words = ()
    force: bool = False

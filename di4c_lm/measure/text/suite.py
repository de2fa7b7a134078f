"""Fluency, diversity and distance to the validation set of samples, canaries among them, as one table with tested differences.

It knows samples as tokens and nothing of our models. Axes: N samples (S seeds, one after the other), M reference documents, D tokens.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, combinations
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from di4c_lm.core.settings import Ints, Texts, at_least, check, section, setting
from di4c_lm.measure.flow import Measured, Row, columns, difference, measured, with_end
from di4c_lm.measure.render.files import Layout
from di4c_lm.measure.render.pictures import Panel
from di4c_lm.measure.render.tables import LEAD, Column, aligned, short, star, star_said, table, with_detectable
from di4c_lm.measure.settings import Measurement, distinct
from di4c_lm.measure.text.diversity import DIVERSITY, ENTROPY, Windows, repetition, sample_entropy
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.features import DISTRIBUTION, FROM_TEACHER, Vectors, vectors
from di4c_lm.measure.text.gen_ppl import FLUENCY, PERPLEXITY, SAMPLE_ENTROPY, beaten_by, verdict
from di4c_lm.measure.text.samples import Reader, Reading, TextSamples, examples

METRICS = (FLUENCY, ENTROPY, DIVERSITY, DISTRIBUTION, FROM_TEACHER)
PARTS = (*dict.fromkeys(metric.part for metric in METRICS), "brier", "frontier", "likelihood", "mixture", "cost")
REAL = "held-out text"
IN_A_LINE = (
    "gen_ppl",
    "entropy",
    "brier_lm",
)  # metrics of which the table's foot says which differences would have shown
LOWER_IS_CLOSER = ("gradient_moment", "energy", "energy_hand")
_ORDER_SHARE, _CORPUS_SHARE, _DUPLICATE_EXCESS, _TAIL_P = 0.1, 0.9, 0.05, 1e-3
LAYOUT = Layout(
    data="validation set",
    panels=(
        PERPLEXITY,
        SAMPLE_ENTROPY,
        Panel("gradient_moment", "gradient moment", "0: as the text itself"),
        Panel("energy", "energy distance", "0: as the text itself"),
    ),
    headings={key: heading for metric in METRICS for key, heading in metric.headings.items()},
    details={key: heading for metric in METRICS for key, heading in metric.details.items()}
    | {"tail_rate": "rare tokens sampled"},
    long=True,
)


@section
class ReportConfig(Measurement, Reading):
    """The whole evaluation of a run's models, with canaries: report.json, .csv, .png and .html."""

    OLD_KEYS = {"judges": "evaluators", "judge_batch_size": "evaluator_batch_size"}

    form: Literal["quick", "full"] = setting(
        "full", "full: the defaults below; quick: about a tenth of the work, for keys that nobody set"
    )
    models: Texts = setting(
        (), "names of the run's models, or folders, or <name>=<folder>, of runs or exported models; []: the run's own"
    )
    parts: Texts = setting(PARTS, f"of: {', '.join(PARTS)}")
    num_samples: int = setting(128, "samples for each model, number of steps and seed")
    references: int = setting(
        0, "validation sequences to compare with; 0: half of them, the other half being the real text measured too"
    )
    seeds: Ints = setting(
        (0,), "random seeds of sampling; with several, intervals are over seeds and documents, and samples are pooled"
    )
    sampler: str = setting(
        "usual",
        "how the models are sampled: the name of a sampler, such as ancestral or remasking; usual: each its own",
    )
    grid: str = setting("uniform", "times of the sampling steps: uniform, cosine, optimised or fewest")
    noise: Literal["exact", "legacy_fp32"] = setting(
        "exact", "noise of the samplers; exact, or legacy_fp32 as published, whose samples are flagged"
    )
    teacher_samples: int = setting(
        128, "samples of the teacher, one position a call, from which the part `teacher` measures distances"
    )
    permutations: int = setting(999, "random exchanges in each permutation test")
    canaries: bool = setting(True, "also measure samples that must fail (canaries), and say whether they did")
    evaluators: Texts = setting(
        (), "folders or hub names, e.g. [gpt2-large,<dir>]; []: the run's own; the first also tests the order of tokens"
    )
    features: str | None = setting(
        None, "the model behind MAUVE, energy and gradient moment: folder or hub name; null: the first evaluator"
    )
    mauve_seeds: Ints = setting((0, 1, 2, 3, 4), "random seeds of MAUVE's clustering")
    mauve_clusters: int = setting(0, "clusters of MAUVE; 0: a tenth of the number of samples")
    self_bleu_samples: int = setting(32, "samples that Self-BLEU compares, at a cost of their square; 0: no Self-BLEU")
    self_bleu_legacy: bool = setting(False, "also measure Self-BLEU over characters, as published (slow)")
    temperatures: tuple[float, ...] = setting(
        (0.7, 0.85, 1.0, 1.15),
        "temperatures of the frontier; models are compared where their samples' entropy is the same",
    )
    baselines: bool = setting(
        True, "measure n-grams of the training text, and the teacher's marginals with token bigrams"
    )
    autoregressive: str | None = setting(
        None,
        "folder or hub name of a language model with the same tokenizer, for BrierLM beside it; evaluator: the run's own",
    )
    brier_prompts: int = setting(256, "validation sequences that are continued and filled in for BrierLM")
    brier_samples: int = setting(4, "samples of each; 2 is the published estimator, more have less spread")
    prompt_length: int = setting(0, "tokens that are continued; 0: half of the samples' length")
    likelihood_sequences: int = setting(64, "validation sequences whose likelihood is bounded")
    likelihood_draws: int = setting(8, "times t sampled for the bound of each sequence")
    zero_shot: str | None = setting(
        None, 'a folder of .txt (a document a line) or .jsonl ({"text": ...}) files, each a set; null: none'
    )
    lambada: str | None = setting(
        None, "such a file, whose documents' last words are predicted; null: the validation sequences"
    )
    lambdas: int = setting(16, "samples of λ that stand for a mixture (a codebook not larger is enumerated)")
    mixture_steps: int = setting(2, "number of steps of the samples with λ resampled, frozen and averaged")
    cost_batches: Ints = setting((1, 8), "batch sizes at which sampling is timed")
    cost_repeats: int = setting(3, "measurements for each batch size")

    def __post_init__(self) -> None:
        Measurement.__post_init__(self)
        Reading.__post_init__(self)
        for low, names in _LEAST.items():
            at_least(self, low, *names)
        distinct(self, 0, "seeds", "mauve_seeds")
        distinct(self, 1, "cost_batches")
        check(self.parts and set(self.parts) <= set(PARTS), "parts", self.parts, f"some of {', '.join(PARTS)}")
        apart = len(self.temperatures) >= 2 and len({*self.temperatures}) == len(self.temperatures)
        allowed = "two or more distinct numbers above 0"
        check(apart and min(self.temperatures) > 0, "temperatures", self.temperatures, allowed)
        check(self.self_bleu_samples != 1, "self_bleu_samples", 1, "0, or at least 2")

    def implied(self, said: Collection[str]) -> dict[str, Any]:
        """What `form=quick` makes of keys that nobody set."""
        return {key: value for key, value in _QUICK.items() if self.form == "quick" and key not in said}

    def unused(self) -> dict[str, str]:
        """What only parts that are not asked for read."""
        reason = f"where parts={','.join(self.parts)}"
        reads = {**_READ_BY, **({} if self.needs_evaluator else dict.fromkeys(("evaluators", "features"), ()))}
        return {name: reason for name, parts in reads.items() if not {*parts} & {*self.parts}}

    @property
    def needs_evaluator(self) -> bool:
        """Whether a part reads text by a language model."""
        return bool({*self.parts} - {"brier", "likelihood", "cost"})

    @property
    def how(self) -> dict[str, Any]:
        """What models' `sample` takes."""
        return {"sampler": self.sampler, "grid": self.grid, "noise": self.noise}


_QUICK: dict[str, Any] = {
    "steps": (1, 4, 16),
    "num_samples": 32,
    "bootstrap": 200,
    "permutations": 199,
    "teacher_samples": 32,
    "mauve_seeds": (0,),
    "self_bleu_samples": 16,
    "temperatures": (0.7, 1.0, 1.15),
    "brier_prompts": 128,
    "likelihood_sequences": 16,
    "likelihood_draws": 4,
    "lambdas": 8,
    "cost_repeats": 1,
}
_READ_BY = {  # keys, each with the parts that have a use for it
    **dict.fromkeys(("mauve_seeds", "mauve_clusters", "permutations"), ("distribution", "teacher")),
    "teacher_samples": ("teacher",),
    **dict.fromkeys(("self_bleu_samples", "self_bleu_legacy"), ("diversity",)),
    "baselines": ("fluency", "diversity", "distribution", "teacher", "brier", "frontier"),
    "temperatures": ("frontier",),
    **dict.fromkeys(("brier_prompts", "brier_samples", "prompt_length"), ("brier",)),
    **dict.fromkeys(("likelihood_draws", "zero_shot", "lambada"), ("likelihood",)),
    "likelihood_sequences": ("likelihood", "mixture"),
    "mixture_steps": ("mixture",),
    **dict.fromkeys(("cost_batches", "cost_repeats"), ("cost",)),
}
_LEAST = {
    0: ("references", "mauve_clusters", "self_bleu_samples", "prompt_length"),
    1: ("likelihood_draws", "mixture_steps", "cost_repeats"),
    2: ("brier_prompts", "brier_samples", "likelihood_sequences", "lambdas"),
    8: ("num_samples", "teacher_samples"),
    19: ("permutations",),
}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Bench(Reader):
    """What the metrics of text work with: evaluators, an encoder, and the reference, sequences that no row holds.

    `sequential`: samples of the teacher, one position a call, where distances from them are measured too. `training`: sequences of the
    training text, where what is copied from it is counted.
    """

    encoder: Evaluator
    settings: ReportConfig
    reference: Int[Tensor, "M D"]
    sequential: Int[Tensor, "K D"] | None = None
    training: Int[Tensor, "T D"] | None = None
    _last: dict[TextSamples, Vectors] = field(default_factory=dict, init=False)

    def vectors(self, samples: TextSamples) -> Vectors:
        """Those of samples, kept until others are asked for."""
        if samples not in self._last:
            self._last.clear()
            self._last[samples] = vectors(samples, self)
        return self._last[samples]

    @cached_property
    def windows(self) -> Windows | None:
        """What stands in the training text, where that is known."""
        return None if self.training is None else Windows.of(self.training)

    @cached_property
    def reference_vectors(self) -> Vectors:
        """Those of the reference."""
        return vectors(TextSamples(name="reference", kind="data", tokens=self.reference), self)

    @cached_property
    def sequential_vectors(self) -> Vectors:
        """Those of the teacher's sequential samples."""
        assert self.sequential is not None
        return vectors(TextSamples(name="sequential", kind="data", tokens=self.sequential), self)


def split_held_out(
    data_ND: Int[Tensor, "N D"], *, references: int, num_real: int, seed: int
) -> tuple[Int[Tensor, "M D"], Int[Tensor, "K D"]]:
    """Validation sequences in random order: `references` to compare with (0: half), and at most `num_real` others, the real text.

    Raises `ValueError` where fewer than 8 would be left on either side.
    """
    num_all = len(data_ND)
    wanted = references or num_all // 2
    if wanted < 8 or num_all - wanted < 8:
        raise ValueError(
            f"references must leave at least 8 of the {num_all} validation sequences as references, and at least 8 as the real text that "
            f"is measured beside the samples, got {references}"
        )
    order = torch.randperm(num_all, generator=torch.Generator().manual_seed(seed))
    return data_ND[order[:wanted]], data_ND[order[wanted : wanted + num_real]]


def measure_suite(samples: Iterable[TextSamples], real_KD: Int[Tensor, "K D"], bench: Bench) -> Measured:
    """All samples, and the real text, against the bench's reference, by those of METRICS whose part its settings name.

    Raises `ValueError`: no or empty samples, samples of another length than the reference, no evaluator, unfinished samples, text longer
    than an evaluator reads, too few documents.
    """
    if not bench.evaluators:
        raise ValueError("evaluators must hold at least one, got ()")
    settings, reference_MD = bench.settings, bench.reference
    metrics = [metric for metric in METRICS if metric.part in settings.parts]
    resampling = {"resamples": settings.bootstrap, "seed": settings.seeds[0]}
    found: list[tuple[TextSamples, Row]] = []
    rows: list[Row] = []
    shown: list[Row] = []
    for one in chain([TextSamples(name=REAL, kind="data", tokens=real_KD)], samples):
        if one.tokens.shape[1] != reference_MD.shape[1] or len(one.tokens) == 0:
            shape = tuple(one.tokens.shape)
            raise ValueError(
                f"{one.name!r} gave samples of shape {shape}, expected some of {reference_MD.shape[1]} tokens"
            )
        shown += examples(one, bench.tokenizer)
        values = measured(one, bench, metrics)
        found.append((one, values))
        row: Row = {"model": one.name, "kind": one.kind, "steps": one.steps, "nfe": float(one.nfe)}
        row |= {"num_samples": len(one.tokens), "seeds": one.seeds, "noise": one.noise, **one.tail}
        rows.append(row | columns(values, **resampling))
    band = band_of(reference_MD)
    rows = ranked([row | {"flags": flags(row, rows[0], band)} for row in rows])
    against = [row for row in rows if row["kind"] == "baseline"]
    if against and "gen_ppl" in rows[0]:
        rows = [row | ({"beaten_by": beaten_by(row, against)} if row["kind"] == "model" else {}) for row in rows]
    compared = {key for metric in metrics for key in metric.compared}
    comparisons = [
        difference(key, {"of": a.name, "minus": b.name, "steps": a.steps}, value, of_b[key], **resampling)
        for (b, of_b), (a, of_a) in combinations([one for one in found if one[0].kind == "model"], 2)
        if a.steps == b.steps and a.tokens.shape == b.tokens.shape
        for key, value in of_a.items()
        if key.partition("@")[0] in compared
    ]
    return Measured(rows=rows, comparisons=comparisons, alarms=uncaught(rows), examples=shown)


def band_of(reference_MD: Int[Tensor, "M D"]) -> tuple[float, float, float]:
    """Where real documents lie: the ends of the central 95 % of their entropies, and 0.01 above the 97.5 % quantile of their repetition."""
    low, high = np.quantile(sample_entropy(reference_MD).cpu().numpy(), [0.025, 0.975])
    repeated_M = repetition(reference_MD, min(4, reference_MD.shape[1])).cpu().numpy()
    return float(low), float(high), float(np.quantile(repeated_M, 0.975)) + 0.01


def flags(row: Row, real: Row, band: tuple[float, float, float]) -> list[str]:
    """Why a row is not ranked; none for one that may be: perplexity and entropy alone can be had without a model.

    `band` is that of the reference, `real` the row of the rest of the validation set. Only what the row holds is looked at:

    - entropy: its mean over samples lies outside the band;
    - repetition: its mean Rep-4 lies above the band;
    - near-duplicates: their share exceeds that of the real text by 0.05;
    - corpus entropy: below 0.9 of the real text's, the samples being as many;
    - perplexity: below the real text's under some evaluator, intervals apart;
    - order: the evaluator loses less than a tenth as much by shuffling the sample's tokens as by shuffling real text;
    - noise: the sampler's noise is of single precision, or it samples rare tokens less often than it should (p < 0.001 in the probe);
    - real text must not differ from the reference: p < 0.001 in a permutation test flags it.
    """
    low, high, most_repeated = band
    found = []
    if "entropy" in row and not low <= row["entropy"] <= high:
        found.append(f"entropy outside {low:.3f} to {high:.3f}")
    if "rep_4" in row and row["rep_4"] > most_repeated:
        found.append(f"repetition above {most_repeated:.3f}")
    if "near_duplicates" in row and row["near_duplicates"] > real["near_duplicates"] + _DUPLICATE_EXCESS:
        found.append("near-duplicates")
    if "corpus_entropy" in row and row["corpus_entropy"] < _CORPUS_SHARE * real["corpus_entropy"]:
        found.append(f"corpus entropy below {_CORPUS_SHARE * real['corpus_entropy']:.3f}")
    scored = [key for key in row if key.partition("@")[0] == "gen_ppl"]
    if any(row[with_end(key, "high")] < real[with_end(key, "low")] for key in scored):
        found.append("perplexity below that of the text itself")
    if "order_gain" in row and row["order_gain"] < _ORDER_SHARE * real["order_gain"]:
        found.append("order of tokens means nothing")
    if row["noise"] != "float64":
        found.append(f"noise is {row['noise']}")
    if row.get("tail_p", 1.0) < _TAIL_P:
        found.append("rare tokens sampled too seldom")
    if row["kind"] == "data" and any(row.get(f"{name}_p", 1.0) < _TAIL_P for name in LOWER_IS_CLOSER):
        found.append("halves of the validation set differ")
    return found


def ranked(rows: Iterable[Row]) -> list[Row]:
    """The rows with `rank`: 1 for the one nearest to the validation set, None for flagged rows and where no distance was measured.

    Nearness is the mean of the ranks by gradient moment, by both energy distances, and by MAUVE.
    """
    every = list(rows)
    fit = [row for row in every if not row["flags"] and "gradient_moment" in row]
    columns = [[row[name] for row in fit] for name in LOWER_IS_CLOSER] + [[-row["mauve"] for row in fit]]
    mean_rank = np.mean([[sum(a < b for a in column) for b in column] for column in columns], axis=0) if fit else []
    order = {id(fit[i]): place + 1 for place, i in enumerate(np.argsort(mean_rank, kind="stable"))}
    return [row | {"rank": order.get(id(row))} for row in every]


def uncaught(rows: Iterable[Row]) -> list[str]:
    """Canaries that were neither flagged nor ranked behind every model: reasons not to believe the report."""
    every = list(rows)
    last = max((row["rank"] for row in every if row["kind"] == "model" and row["rank"]), default=0)
    return [
        f"{row['model']}, {row['steps']} steps" if row["steps"] else str(row["model"])
        for row in every
        if row["kind"] == "canary" and not row["flags"] and (row["rank"] is None or row["rank"] < last)
    ]


def suite_table(report: Mapping[str, Any]) -> str:
    """Plain text for a terminal: the rows of samples, with flags, the tables of the other parts, then the alarms."""
    rows = report["rows"]
    columns: list[Column] = [*LEAD, ("rank", lambda row: str(row["rank"] or "-"))]
    keys = [
        key
        for key in ("gen_ppl", "entropy", "gradient_moment", "energy", "mauve", "energy_teacher")
        if rows and key in rows[0]
    ]
    text = table(rows, [*columns, *((key, lambda row, key=key: short(row[key]) + star(row, key)) for key in keys)])
    flagged = [
        f"{row['model']}, {row['steps'] or '-'} steps: {'; '.join(row['flags'])}" for row in rows if row["flags"]
    ]
    said = verdict(rows)
    text += (f"\n\n{said}" if said else "") + star_said(rows)
    text += "\n\nflagged, so not ranked\n" + "\n".join(flagged) if flagged else ""
    for part in ("brier", "frontier", "matched", "likelihood", "last_words", "correlation", "latent_modes", "cost"):
        of_part = report.get(part) or []
        names = [key for key in (of_part[0] if of_part else {}) if not key.endswith(("_low", "_high", "_sd"))]
        plain = [[_told(row.get(key)) for key in names] for row in of_part]
        text += f"\n\n{part}\n{aligned(names, plain)}" if of_part else ""
    text = with_detectable(text.strip(), [row for row in report["detectable"] if row["metric"] in IN_A_LINE])
    return text + "".join(f"\nNOT CAUGHT: {name}" for name in report["alarms"])


def _told(value: Any) -> str:
    return "-" if value is None else short(value) if isinstance(value, float) else str(value)

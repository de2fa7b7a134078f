"""The reports on a run of text: generative perplexity alone, the bound of an MDLM, and the whole evaluation, part by part."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int64
from torch import Tensor

from di4c_lm.core.files import write_json
from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.core.settings import to_dict
from di4c_lm.measure.flow import Row, columns, difference, nfe_of
from di4c_lm.measure.render.files import write_report
from di4c_lm.measure.render.manifest import manifest
from di4c_lm.measure.settings import device_of
from di4c_lm.measure.statistics.bootstrap import Resampled, exp_mean, mean
from di4c_lm.measure.text import gen_ppl, suite
from di4c_lm.measure.text.canaries import periodic, shuffled, tail_probe, tiled
from di4c_lm.measure.text.cost import sampling_costs
from di4c_lm.measure.text.evaluator import Evaluator, evaluator_facts, load_evaluator
from di4c_lm.measure.text.gen_ppl import GenPplConfig, gen_ppl_table, measure, measure_conditional
from di4c_lm.measure.text.likelihood import last_words, marginal_bound, read_texts, step_bound, zero_shot_sets
from di4c_lm.measure.text.mixture import latent_modes, total_correlation
from di4c_lm.measure.text.samples import TextModel, TextSamples, sampled
from di4c_lm.measure.text.suite import ReportConfig, measure_suite, split_held_out, suite_table

logger = logging.getLogger(__name__)
_NOISE = {"exact": "float64", "legacy_fp32": "float32"}
_PROBE_STEPS, _FLOAT32_SAMPLES = 64, 32
_CORRELATION_TIMES = (1.0, 0.75, 0.5, 0.25)


class TextRun(Protocol):
    """A finished run: its settings as plain values, its models by name with the folders they come from, and what they are measured by."""

    settings: Any
    folder: Path
    models: Any  # name to `TextModel`, the last the student
    paths: Any
    validation: Int64[Tensor, "N D"]
    evaluator: str


# Generative perplexity


def gen_ppl_report(run: Any, settings: GenPplConfig) -> str:
    """Measure the models of `run` as `settings` say, write `report/gen_ppl.{json,csv,png,html}`, and return the table.

    Of continued prompts the files are called gen_ppl_conditional. Raises `ValueError` as `measure` and `load_evaluator` do, and for a GPU
    that is not there.
    """
    student, device = _moved(run, settings.device), device_of(settings.device)
    evaluator = load_evaluator(settings.evaluator or run.evaluator, device=device)
    settings = settings.fitted(student.length) if settings.conditional else settings
    common: dict[str, Any] = {"tokenizer": student.tokenizer, "evaluator": evaluator, "settings": settings}
    if settings.conditional:
        prompted = {name: _prompted(model, settings.batch_size) for name, model in run.models.items()}
        found = measure_conditional(prompted, run.validation, **common)
    else:
        found = measure(
            {name: _free(model, settings.batch_size) for name, model in run.models.items()}, run.validation, **common
        )
    lengths = ("prompts", "continuations", "prompt_length", "continuation_length")
    facts = _manifest(
        run,
        settings,
        found.rows,
        sampler="ancestral",
        seed=settings.seed,
        dtypes={"judge": str(next(evaluator.model.parameters()).dtype)},
        evaluator=evaluator_facts(evaluator, student.tokenizer, settings),
        prompting={name: getattr(settings, name) for name in lengths} if settings.conditional else None,
    )
    kind = "Conditional" if settings.conditional else "Unconditional"
    most = max(row["num_samples"] for row in found.rows)
    paths = write_report(
        settings.folder(run.folder),
        "gen_ppl_conditional" if settings.conditional else "gen_ppl",
        {"manifest": facts, "rows": found.rows, "comparisons": found.comparisons},
        gen_ppl.LAYOUT,
        title=f"{kind} generation: {most:,} samples of {student.length:,} tokens, 95 % intervals",
        subtitle=_subtitle(facts),
    )
    logger.info("report: %s", ", ".join(str(path) for path in paths.values()))
    return gen_ppl_table(found)


def _moved(run: Any, device: str) -> TextModel:
    """The student, all models being on the device."""
    for model in run.models.values():
        model.denoiser.to(device_of(device))
    return list(run.models.values())[-1]


def _free(model: TextModel, batch_size: int, **how: Any) -> Callable[[int, int, int], tuple[Tensor, float]]:
    def sampler(num_samples: int, steps: int, seed: int) -> tuple[Tensor, float]:
        return model.sample(num_samples, steps, seed=seed, batch_size=batch_size, **how)

    return sampler


def _prompted(model: TextModel, batch_size: int) -> gen_ppl.PromptedSampler:
    def sampler(prompts_NP: Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
        x_ND = torch.full((len(prompts_NP), model.length), model.process.mask_id)
        x_ND[:, : prompts_NP.shape[1]] = prompts_NP
        return model.sample(len(x_ND), steps, seed=seed, batch_size=batch_size, x_init=x_ND)

    return sampler


def _manifest(
    run: Any, settings: Any, rows: Sequence[Row], *, dtypes: Mapping[str, str], **facts: Any
) -> dict[str, Any]:
    student = list(run.models.values())[-1]
    model_dtype = str(next(student.denoiser.parameters()).dtype)
    return manifest(
        config={"report": to_dict(settings), "run": run.settings},
        checkpoints=run.paths,
        nfe=nfe_of(rows),
        dtypes={"noise": "float64", "model": model_dtype, **dtypes},
        length=student.length,
        tokenizer=fingerprint(student.tokenizer),
        **facts,
    )


def _subtitle(facts: Mapping[str, Any]) -> str:
    evaluators = ", ".join(str(one["name"]) for one in facts["judge"].get("judges", [facts["judge"]]))
    return (
        f"{facts['time']} · commit {facts['commit'][:12]} · {facts['length']} tokens a sample · sampler {facts['sampler']}, "
        f"noise {facts['dtypes']['noise']} · evaluated by {evaluators} · 95 % intervals below each number"
    )


def bound_report(run: Any, settings: GenPplConfig, *, draws: int) -> str:
    """Bound the validation perplexity of the run's models without λ, write `report/bound.json`, and return a line a model.

    A row holds model, bound_ppl = exp(nats a token) with `_low` and `_high` of a 95 % bootstrap over sequences, sequences and draws:
    `draws` times for each of the first `settings.num_samples` validation sequences. The file carries the manifest of gen_ppl.json, which
    is written before it.
    """
    x_ND = run.validation[: settings.num_samples]
    _moved(run, settings.device)
    rows: list[Row] = []
    for name, model in run.models.items():
        if model.denoiser.latent is None:
            how: dict[str, Any] = {
                "draws": draws,
                "lambdas": 1,
                "seed": settings.seed,
                "batch_size": settings.batch_size,
            }
            bound = Resampled(exp_mean, (marginal_bound(model, x_ND, **how).numpy() / x_ND.shape[1],))
            value = columns({"bound_ppl": bound}, resamples=settings.bootstrap, seed=settings.seed)
            rows.append({"model": name, **value, "sequences": len(x_ND), "draws": draws})
    folder = settings.folder(run.folder)
    facts = json.loads((folder / "gen_ppl.json").read_text())["manifest"]
    write_json(folder / "bound.json", {"manifest": facts, "rows": rows})
    line = "{model}: validation perplexity at most {bound_ppl:.4g} ({bound_ppl_low:.4g} to {bound_ppl_high:.4g})"
    return "\n".join(line.format(**row) for row in rows)


# The whole evaluation


def full_report(run: Any, settings: ReportConfig) -> str:
    """Measure the models of `run` as `settings` say, write report.{json,csv,png,html}, and return the table.

    Raises `ValueError` for a GPU that is not there, and as the parts do.
    """
    student, device = _moved(run, settings.device), device_of(settings.device)
    evaluated = set(settings.parts) - {"likelihood", "cost"}
    names = settings.evaluators or (run.evaluator,)
    evaluators = [load_evaluator(name, device=device) for name in names] if evaluated else []
    encoder = (
        load_evaluator(settings.features, device=device)
        if settings.features and evaluators
        else (evaluators or [None])[0]
    )
    report: dict[str, Any] = {"rows": [], "comparisons": [], "alarms": []}
    seconds: dict[str, float] = {}
    for part, (names, measure_part) in PARTS.items():
        if names & set(settings.parts):
            start = time.perf_counter()
            logger.info("measuring %s", part)
            found = measure_part(run, settings, evaluators, encoder)
            report["comparisons"] += found.pop("comparisons", [])
            report |= found
            seconds[part] = round(time.perf_counter() - start, 1)
    facts = [evaluator_facts(one, student.tokenizer, settings) for one in evaluators]
    encoder_facts = evaluator_facts(encoder, student.tokenizer, settings) if encoder else None
    found_by = _manifest(
        run,
        settings,
        [*report["rows"], *report.get("cost", ())],
        sampler=f"{settings.sampler}, grid {settings.grid}",
        seed=settings.seeds[0],
        dtypes={"noise": _NOISE[settings.noise]},
        evaluator={"judges": facts, "features": encoder_facts},
        seeds=list(settings.seeds),
    )
    report = {"manifest": found_by, **report, "seconds": seconds}
    folder = settings.folder(run.folder)
    title, subtitle = " · ".join(run.models), _subtitle(found_by)
    paths = write_report(folder, "report", report, suite.LAYOUT, title=title, subtitle=subtitle)
    logger.info("report: %s", ", ".join(str(path) for path in paths.values()))
    return suite_table(report)


def _samples(
    run: Any, settings: ReportConfig, evaluators: list[Evaluator], encoder: Evaluator | None
) -> dict[str, Any]:
    """Fluency, diversity and distance to the validation set, those that are asked for."""
    assert encoder is not None
    reference, real = split_held_out(
        run.validation, references=settings.references, num_real=settings.num_samples, seed=settings.seeds[0]
    )
    found = measure_suite(
        _cells(run, real, settings),
        real,
        reference,
        tokenizer=list(run.models.values())[-1].tokenizer,
        evaluators=evaluators,
        encoder=encoder,
        settings=settings,
    )
    return {"rows": found.rows, "comparisons": found.comparisons, "alarms": found.alarms}


def _cells(run: Any, real: Tensor, settings: ReportConfig) -> Iterator[TextSamples]:
    how: dict[str, Any] = {"sampler": settings.sampler, "grid": settings.grid, "noise": settings.noise}
    noise, (name, student) = _NOISE[settings.noise], list(run.models.items())[-1]
    yield from sampled(
        {name: _free(model, settings.batch_size, **how) for name, model in run.models.items()},
        settings.num_samples,
        length=student.length,
        steps=settings.steps,
        seeds=settings.seeds,
        progress=True,
        noise=noise,
        tail=_tail(student, settings) if noise == "float64" else {},
    )
    if not settings.canaries:
        return
    num, seed = settings.num_samples, settings.seeds[0]
    yield TextSamples(name="canary: periodic", kind="canary", tokens=periodic(real, num, seed=seed))
    yield TextSamples(name="canary: one text tiled", kind="canary", tokens=tiled(real, num))
    yield TextSamples(name="canary: shuffled text", kind="canary", tokens=shuffled(real, num, seed=seed))
    legacy, few = _free(student, settings.batch_size, noise="legacy_fp32"), min(num, _FLOAT32_SAMPLES)
    tokens, nfe = legacy(few, max(settings.steps), seed)
    canary: dict[str, Any] = {"name": f"canary: {name}, float32 noise", "kind": "canary", "noise": "float32"}
    yield TextSamples(**canary, tokens=tokens, steps=max(settings.steps), nfe=nfe)


def _tail(student: TextModel, settings: ReportConfig) -> dict[str, float]:
    """The probe of the sampler in use; the samplers that need more than steps, or a particular network, are not probed."""
    if settings.sampler not in ("ancestral", "first_hitting", "first_hitting_parallel"):
        return {}
    return tail_probe(student, steps=_PROBE_STEPS, seed=settings.seeds[0], settings={"sampler": settings.sampler})


def _row(values: Mapping[str, Resampled], settings: ReportConfig, **facts: Any) -> Row:
    return {**facts, **columns(values, resamples=settings.bootstrap, seed=settings.seeds[0])}


def _likelihood(run: Any, settings: ReportConfig, *_: Any) -> dict[str, Any]:
    """Perplexity bounds of validation and zero-shot text, each of the one-token-a-step limit and of each step count, and last words."""
    limit, seed = settings.likelihood_sequences, settings.seeds[0]
    student = list(run.models.values())[-1]
    sets = {"held-out": run.validation[:limit]}
    if settings.zero_shot is not None:
        sets |= zero_shot_sets(Path(settings.zero_shot), student, limit=limit)
    texts = read_texts(Path(settings.lambada))[:limit] if settings.lambada else _texts(student, run.validation[:limit])
    rows, words = [], []
    quantities: dict[str, dict[tuple[str, str], Resampled]] = {name: {} for name in run.models}
    common: dict[str, Any] = {"lambdas": settings.lambdas, "seed": seed, "batch_size": settings.batch_size}
    for name, model in run.models.items():
        for where, x_ND in sets.items():
            bounds = {"bound_ppl": marginal_bound(model, x_ND, draws=settings.likelihood_draws, **common)}
            for steps in settings.steps if where == "held-out" else ():
                bounds[f"bound_ppl_{steps}_steps"] = step_bound(
                    model, x_ND, steps=steps, draws=settings.likelihood_draws, **common
                )
            of_set = {key: Resampled(exp_mean, (nats_N.numpy() / x_ND.shape[1],)) for key, nats_N in bounds.items()}
            quantities[name] |= {(key, where): value for key, value in of_set.items()}
            rows.append(_row(of_set, settings, model=name, set=where, sequences=len(x_ND)))
        hits = Resampled(mean, (last_words(model, texts, **common).numpy(),))
        quantities[name]["accuracy", "last words"] = hits
        words.append(_row({"accuracy": hits}, settings, model=name, set="last words", sequences=len(texts)))
    comparisons = [
        difference(
            f"{key}, {where}",
            {"of": a, "minus": b, "steps": 0},
            value,
            quantities[b][key, where],
            resamples=settings.bootstrap,
            seed=seed,
        )
        for b, a in combinations(run.models, 2)
        for (key, where), value in quantities[a].items()
    ]
    return {"likelihood": rows, "last_words": words, "comparisons": comparisons}


def _texts(student: TextModel, x_ND: Int64[Tensor, "N D"]) -> list[str]:
    """Validation sequences as texts that end with a whole word: what follows the last space is left out."""
    decoded = [str(student.tokenizer.decode(ids, skip_special_tokens=True)) for ids in x_ND.tolist()]
    texts = [" ".join(text.split()[:-1]) for text in decoded]
    return [text for text in texts if len(text.split()) >= 2]


def _mixture(run: Any, settings: ReportConfig, evaluators: list[Evaluator], *_: Any) -> dict[str, Any]:
    """Of each model with λ: correlations captured at several times, and samples with λ resampled, frozen, averaged."""
    found: dict[str, Any] = {"correlation": [], "latent_modes": [], "comparisons": []}
    x_ND, shared = run.validation[: settings.likelihood_sequences], ("num_samples", "batch_size", "bootstrap")
    shared = (*shared, "evaluator_batch_size", "eos", "retokenize", "overflow")
    config = GenPplConfig(
        steps=(settings.mixture_steps,), seed=settings.seeds[0], **{key: getattr(settings, key) for key in shared}
    )
    for name, model in run.models.items():
        if model.denoiser.latent is None:
            continue
        for t in _CORRELATION_TIMES:
            own_N, text_N = total_correlation(model, x_ND, t=t, lambdas=settings.lambdas, seed=settings.seeds[0])
            values = {"captured": Resampled(mean, (own_N.numpy(),)), "gain_on_text": Resampled(mean, (text_N.numpy(),))}
            found["correlation"].append(_row(values, settings, model=name, t=t, sequences=len(x_ND)))
        modes = latent_modes(model, lambdas=settings.lambdas, batch_size=settings.batch_size)
        measured = measure(
            {f"{name}, {mode}": sampler for mode, sampler in modes.items()},
            run.validation,
            tokenizer=model.tokenizer,
            evaluator=evaluators[0],
            settings=config,
        )
        found["latent_modes"] += [row for row in measured.rows if row["model"] != gen_ppl.DATA]
        found["comparisons"] += measured.comparisons
    return found


def _cost(run: Any, settings: ReportConfig, *_: Any) -> dict[str, Any]:
    rows = sampling_costs(
        run.models,
        steps=settings.steps,
        batches=settings.cost_batches,
        repeats=settings.cost_repeats,
        seed=settings.seeds[0],
        settings={"sampler": settings.sampler, "grid": settings.grid, "noise": settings.noise},
    )
    return {"cost": rows}


# What measures the parts of the report: the parts it stands for, and a function of run, settings, evaluators and encoder to tables.
PARTS = {
    "samples": ({metric.part for metric in suite.METRICS}, _samples),
    "likelihood": ({"likelihood"}, _likelihood),
    "mixture": ({"mixture"}, _mixture),
    "cost": ({"cost"}, _cost),
}

"""The reports on a run of text: generative perplexity alone, the bound of an MDLM, and the whole evaluation, part by part."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from di4c_lm.core.files import write_json
from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.core.retry import is_local
from di4c_lm.core.settings import to_dict
from di4c_lm.core.terminal import Stages
from di4c_lm.measure.flow import Row, columns, detectable, nfe_of
from di4c_lm.measure.render.files import with_page, write_report
from di4c_lm.measure.render.manifest import manifest
from di4c_lm.measure.render.pictures import training_curves
from di4c_lm.measure.settings import device_of
from di4c_lm.measure.statistics.bootstrap import Resampled, exp_mean
from di4c_lm.measure.text import gen_ppl, suite
from di4c_lm.measure.text.brier import brier_part
from di4c_lm.measure.text.canaries import periodic, shuffled, tail_probe, tiled
from di4c_lm.measure.text.cost import cost_part
from di4c_lm.measure.text.counting import NgramModel, baselines, ngrams, perplexity
from di4c_lm.measure.text.evaluator import Evaluator, evaluator_facts, load_evaluator
from di4c_lm.measure.text.frontier import frontier_part
from di4c_lm.measure.text.gen_ppl import GenPplConfig, detectable_of, gen_ppl_table, measure, verdict
from di4c_lm.measure.text.likelihood import likelihood_part, marginal_bound
from di4c_lm.measure.text.mixture import mixture_part
from di4c_lm.measure.text.samples import Reader, Reading, TextRun, TextSamples, sampled, sampler_of
from di4c_lm.measure.text.suite import Bench, ReportConfig, measure_suite, split_held_out, suite_table
from di4c_lm.samplers.trajectory import name_of
from di4c_lm.samplers.usual import resolved
from di4c_lm.training.metric_logger import read_metrics

_BOUND_DRAWS = 8  # times a validation sequence
_NOISE = {"exact": "float64", "legacy_fp32": "float32"}
_PROBE_STEPS, _FLOAT32_SAMPLES = 64, 32
_PROBED = (
    "ancestral",
    "first_hitting",
    "first_hitting_parallel",
    "left_to_right",
)  # those that ask for no more than steps, and for no particular network


# Generative perplexity


def gen_ppl_report(run: TextRun, settings: GenPplConfig) -> str:
    """Measure the models of `run` as `settings` say, write `report/gen_ppl.{json,csv,png,html}`, and return the table.

    Of continued prompts the files are called gen_ppl_conditional. Raises `ValueError` as `measure` and `load_evaluator` do, and for a GPU
    that is not there.
    """
    student, device = run.student, _move(run, settings.device)
    evaluator = _load(run, settings, settings.evaluator or run.evaluator, device)
    settings = settings.fitted(student.length) if settings.conditional else settings
    samplers = {
        name: sampler_of(model, settings.batch_size, **run.how.get(name, {})) for name, model in run.models.items()
    }
    reader = Reader(tokenizer=student.tokenizer, evaluators=(evaluator,), settings=settings, cache=run.cache)
    counted = {}
    if settings.baselines and run.training is not None:
        counted = ngrams(run.training, len(student.tokenizer))
    found = measure(samplers, run.validation, reader, baselines(run, counted, settings.batch_size), run.training)
    likelihoods = held_out(run, settings, counted) if counted else {}
    found.rows[:] = [{**row, **likelihoods.get(row["model"], {})} for row in found.rows]
    lengths = ("prompts", "continuations", "prompt_length", "continuation_length")
    facts = _manifest(
        run,
        settings,
        found.rows,
        sampler=run.sampler,
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
        {"manifest": facts, "rows": found.rows, "comparisons": found.comparisons, "examples": found.examples}
        | {"detectable": detectable_of(found), "verdict": verdict(found.rows).splitlines()},
        gen_ppl.LAYOUT,
        title=f"{kind} generation: {most:,} samples of {student.length:,} tokens, 95 % intervals",
        subtitle=_subtitle(facts),
        pictures={"training": training_curves(read_metrics(run.folder))},
    )
    return with_page(gen_ppl_table(found), paths)


def held_out(run: TextRun, settings: GenPplConfig, counted: Mapping[str, NgramModel]) -> dict[str, dict[str, float]]:
    """`validation_ppl`, a token, by model: of n-grams exact, of masked models without λ MDLM's bound on it."""
    chosen_ND = run.some_validation(settings.num_samples, settings.seed).cpu()
    found = {name: perplexity(model, chosen_ND) for name, model in counted.items()}
    for name, model in run.models.items():
        if model.masks and not model.denoiser.has_latents:
            how: dict[str, Any] = {"draws": _BOUND_DRAWS, "lambdas": 1, "batch_size": settings.batch_size}
            nats_N = marginal_bound(model, chosen_ND, seed=settings.seed, **how)
            found[name] = float((nats_N.sum() / chosen_ND.numel()).exp())
    return {name: {"validation_ppl": value} for name, value in found.items()}


def _load(run: TextRun, settings: Reading, name: str, device: str) -> Evaluator:
    return load_evaluator(name, device=device, download=settings.evaluator_download, cache=run.cache)


def _move(run: TextRun, wanted: str) -> str:
    """The device, on which all models are then."""
    device = device_of(wanted)
    for model in run.models.values():
        model.denoiser.to(device)
    return device


def _manifest(
    run: TextRun, settings: Any, rows: Sequence[Row], *, dtypes: Mapping[str, str], **facts: Any
) -> dict[str, Any]:
    student = run.student
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
    names = [str(one["name"]) for one in facts["judge"].get("judges", [facts["judge"]])]
    evaluators = ", ".join(Path(name).name if is_local(name) else name for name in names)
    return (
        f"{facts['time']} · commit {facts['commit'][:12]} · {facts['length']} tokens a sample · sampler {facts['sampler']}, "
        f"noise {facts['dtypes']['noise']} · evaluated by {evaluators} · 95 % intervals below each number"
    )


def bound_report(run: TextRun, settings: GenPplConfig, *, draws: int) -> str:
    """Bound the validation perplexity of the run's models without λ, write `report/bound.json`, and return a line a model.

    A row holds model, bound_ppl = exp(nats a token) with `_low` and `_high` of a 95 % bootstrap over sequences, sequences and draws:
    `draws` times for each of at most `settings.num_samples` validation sequences, chosen at random. The file carries the manifest of
    gen_ppl.json, which is written before it.
    """
    x_ND = run.some_validation(settings.num_samples, settings.seed)
    _move(run, settings.device)
    rows: list[Row] = []
    for name, model in run.models.items():
        if not model.denoiser.has_latents:
            how: dict[str, Any] = {"lambdas": 1, "seed": settings.seed, "batch_size": settings.batch_size}
            nats_N = marginal_bound(model, x_ND, draws=draws, **how).numpy()
            bound = Resampled(exp_mean, (nats_N / x_ND.shape[1],))
            value = columns({"bound_ppl": bound}, resamples=settings.bootstrap, seed=settings.seed)
            rows.append({"model": name, **value, "sequences": len(x_ND), "draws": draws})
    folder = settings.folder(run.folder)
    facts = json.loads((folder / "gen_ppl.json").read_text())["manifest"]
    write_json(folder / "bound.json", {"manifest": facts, "rows": rows})
    line = "{model}: validation perplexity at most {bound_ppl:.4g} ({bound_ppl_low:.4g} to {bound_ppl_high:.4g})"
    return "\n".join(line.format(**row) for row in rows)


# The whole evaluation


def full_report(run: TextRun, settings: ReportConfig) -> str:
    """Measure the models of `run` as `settings` say, write report.{json,csv,png,html}, and return the table.

    Raises `ValueError` for a GPU that is not there, and as the parts do.
    """
    student, device = run.student, _move(run, settings.device)
    names = settings.evaluators or (run.evaluator,)
    evaluators = [_load(run, settings, name, device) for name in names] if settings.needs_evaluator else []
    encoder = evaluators[0] if evaluators else None
    if encoder and settings.features:
        encoder = _load(run, settings, settings.features, device)
    report: dict[str, Any] = {"rows": [], "comparisons": [], "alarms": []}
    seconds: dict[str, float] = {}
    pictures = {"training": training_curves(read_metrics(run.folder))}
    parts = {part: measure_part for part, (names, measure_part) in PARTS.items() if names & set(settings.parts)}
    stages = Stages(*parts)
    for part, measure_part in parts.items():
        start = time.perf_counter()
        stages.begin(part)
        found = measure_part(run, settings, evaluators, encoder)
        report["comparisons"] += found.pop("comparisons", [])
        pictures |= found.pop("pictures", {})
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
    of_models = [row for row in report["rows"] if row["kind"] in ("data", "model")]
    shown = detectable(report["comparisons"], of_models, suite.IN_A_LINE)
    report |= {"verdict": verdict(report["rows"]).splitlines()}
    report = {"manifest": found_by, **report, "detectable": shown, "seconds": seconds}
    folder = settings.folder(run.folder)
    title, subtitle = " · ".join(run.models), _subtitle(found_by)
    paths = write_report(folder, "report", report, suite.LAYOUT, title=title, subtitle=subtitle, pictures=pictures)
    return with_page(suite_table(report), paths)


def _samples(
    run: TextRun, settings: ReportConfig, evaluators: list[Evaluator], encoder: Evaluator | None
) -> dict[str, Any]:
    """Fluency, diversity and distance to the validation set, those that are asked for."""
    assert encoder is not None
    reference, real = split_held_out(
        run.validation, references=settings.references, num_real=settings.num_samples, seed=settings.seeds[0]
    )
    teacher, sequential = run.models.get("teacher"), None
    if "teacher" in settings.parts and teacher is not None and teacher.masks:
        how: dict[str, Any] = {"seed": max(settings.seeds) + 1, "batch_size": settings.batch_size}
        sequential, _ = teacher.sample_tokens(settings.teacher_samples, teacher.length, sampler="first_hitting", **how)
    bench = Bench(
        tokenizer=run.student.tokenizer,
        evaluators=evaluators,
        settings=settings,
        encoder=encoder,
        reference=reference,
        sequential=sequential,
        training=run.training,
        cache=run.cache,
    )
    return vars(measure_suite(_cells(run, real, settings), real, bench))


def _cells(run: TextRun, real: Tensor, settings: ReportConfig) -> Iterator[TextSamples]:
    noise, student = _NOISE[settings.noise], run.student
    tail, sampler = {}, name_of(resolved(settings.sampler, student))
    if noise == "float64" and sampler in _PROBED:
        probed = {"sampler": sampler}
        tail = tail_probe(student, steps=_PROBE_STEPS, seed=settings.seeds[0], settings=probed)
    yield from sampled(
        {name: sampler_of(model, settings.batch_size, **settings.how) for name, model in run.models.items()},
        settings.num_samples,
        length=student.length,
        steps=settings.steps,
        seeds=settings.seeds,
        progress=True,
        noise=noise,
        tail=tail,
    )
    if settings.baselines and run.training is not None:
        counted = ngrams(run.training, len(student.tokenizer))
        for of, source in baselines(run, counted, settings.batch_size, settings.how).items():
            how: dict[str, Any] = {"length": student.length, "seeds": settings.seeds, "progress": True}
            steps = source.steps or settings.steps
            for one in sampled({of: source.sampler}, settings.num_samples, steps=steps, **how):
                yield replace(one, kind="baseline")
    if not settings.canaries:
        return
    num, seed = settings.num_samples, settings.seeds[0]
    yield TextSamples(name="canary: periodic", kind="canary", tokens=periodic(real, num, seed=seed))
    yield TextSamples(name="canary: one text tiled", kind="canary", tokens=tiled(real, num))
    yield TextSamples(name="canary: shuffled text", kind="canary", tokens=shuffled(real, num, seed=seed))
    published = [name for name, model in run.models.items() if model.masks and model.has_marginals]
    if not published:  # nothing that can be sampled as published, position by position
        return
    name, few = published[-1], min(num, _FLOAT32_SAMPLES)
    legacy = sampler_of(run.models[name], settings.batch_size, noise="legacy_fp32")
    tokens, nfe = legacy(few, max(settings.steps), seed)
    canary: dict[str, Any] = {"name": f"canary: {name}, float32 noise", "kind": "canary", "noise": "float32"}
    yield TextSamples(**canary, tokens=tokens, steps=max(settings.steps), nfe=nfe)


# What measures the parts of the report: the parts it stands for, and a function of run, settings, evaluators and encoder to tables.
PARTS = {
    "samples": ({metric.part for metric in suite.METRICS}, _samples),
    "brier": ({"brier"}, brier_part),
    "frontier": ({"frontier"}, frontier_part),
    "likelihood": ({"likelihood"}, likelihood_part),
    "mixture": ({"mixture"}, mixture_part),
    "cost": ({"cost"}, cost_part),
}

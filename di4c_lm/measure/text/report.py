"""The whole evaluation of a run of text: the place that joins the text domain with the suite, part by part."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from tqdm import tqdm

from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.domains.text.model import Run
from di4c_lm.domains.text.report import compared
from di4c_lm.domains.text.settings import EvalConfig
from di4c_lm.measure.render.manifest import manifest
from di4c_lm.measure.render.publish import evaluator_facts
from di4c_lm.measure.render.suite import terminal_table, write_suite
from di4c_lm.measure.statistics import bootstrap
from di4c_lm.measure.text.canaries import periodic, shuffled, tiled
from di4c_lm.measure.text.cost import sampling_costs
from di4c_lm.measure.text.evaluator import Evaluator, load_evaluator
from di4c_lm.measure.text.gen_ppl import measure
from di4c_lm.measure.text.likelihood import last_words, marginal_bound, read_texts, step_bound, zero_shot_sets
from di4c_lm.measure.text.mixture import latent_modes, total_correlation
from di4c_lm.measure.text.suite import Cell, measure_suite, split_held_out
from di4c_lm.measure.text.suite_settings import ReportConfig
from di4c_lm.measure.text.tail import tail_probe

logger = logging.getLogger(__name__)
_NOISE = {"exact": "float64", "legacy_fp32": "float32"}
_PROBE_STEPS, _FLOAT32_SAMPLES = 64, 32
_CORRELATION_TIMES = (1.0, 0.75, 0.5, 0.25)


def full_report(run: Run, settings: ReportConfig) -> str:
    """Measure the models of `run` as `settings` say, write report.{json,csv,png,html}, and return the table.

    Raises `ValueError` for a model of another tokenizer or length than the run's, a GPU that is not there, and as the parts do.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' is impossible: no GPU is visible; allowed are auto, cpu")
    device = "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"
    run = chosen(run, settings.models)
    for model in run.models.values():
        model.denoiser.to(device)
    needs_evaluator = {"fluency", "diversity", "distribution", "mixture"} & set(settings.parts)
    evaluators = (
        [load_evaluator(name, device=device) for name in (settings.evaluators or (run.evaluator,))]
        if needs_evaluator
        else []
    )
    encoder = (
        load_evaluator(settings.features, device=device)
        if settings.features and evaluators
        else (evaluators or [None])[0]
    )
    report = _measure(run, settings, evaluators, encoder)
    folder = Path(settings.report) if settings.report else run.folder / "report"
    report = {"manifest": _manifest(run, settings, evaluators, encoder, report), **report}
    paths = write_suite(folder, report, title=f"{' · '.join(run.models)}")
    logger.info("report: %s", ", ".join(str(path) for path in paths.values()))
    return terminal_table(report)


def chosen(run: Run, words: tuple[str, ...]) -> Run:
    """`run` with the models that `words` say: names among its own, else folders as `reports.compared` takes them; none: its own."""
    own = [word for word in words if word in run.models]
    others = [word for word in words if word not in run.models]
    found = compared(others, run) if others else dataclasses.replace(run, models={}, paths={})
    if not words:
        return run
    return dataclasses.replace(
        run,
        models={name: run.models[name] for name in own} | found.models,
        paths={name: run.paths[name] for name in own} | found.paths,
    )


def _measure(
    run: Run, settings: ReportConfig, evaluators: list[Evaluator], encoder: Evaluator | None
) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": [], "comparisons": [], "alarms": []}
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    if {"fluency", "diversity", "distribution"} & set(settings.parts):
        assert encoder is not None
        reference, real = split_held_out(
            run.validation, references=settings.references, num_real=settings.num_samples, seed=settings.seeds[0]
        )
        suite = measure_suite(
            _cells(run, real, settings),
            real,
            reference,
            tokenizer=run.student.tokenizer,
            evaluators=evaluators,
            encoder=encoder,
            config=settings,
        )
        found |= {"rows": suite.rows, "comparisons": suite.comparisons, "alarms": suite.alarms}
        seconds["samples"] = time.perf_counter() - start
    for part, of in (("likelihood", _likelihood), ("mixture", _mixture), ("cost", _cost)):
        if part in settings.parts:
            start = time.perf_counter()
            logger.info("measuring %s", part)
            more = of(run, settings, evaluators)
            found["comparisons"] += more.pop("comparisons", [])
            found |= more
            seconds[part] = time.perf_counter() - start
    return found | {"seconds": {part: round(value, 1) for part, value in seconds.items()}}


def _cells(run: Run, real: torch.Tensor, settings: ReportConfig) -> Iterator[Cell]:
    how: dict[str, Any] = {"sampler": settings.sampler, "grid": settings.grid, "noise": settings.noise}
    noise = _NOISE[settings.noise]
    tail = {} if noise != "float64" else _tail(run, settings)
    todo = [(name, model, steps) for name, model in run.models.items() for steps in settings.steps]
    for name, model, steps in tqdm(todo, desc="evaluating", unit="row"):
        drawn = [
            model.sample(settings.num_samples, steps, seed=seed, batch_size=settings.batch_size, **how)
            for seed in settings.seeds
        ]
        yield Cell(
            name=name,
            kind="model",
            tokens=torch.cat([tokens for tokens, _ in drawn]),
            steps=steps,
            nfe=float(np.mean([nfe for _, nfe in drawn])),
            seeds=len(settings.seeds),
            noise=noise,
            tail=tail,
        )
    if not settings.canaries:
        return
    num, seed = settings.num_samples, settings.seeds[0]
    yield Cell(name="canary: periodic", kind="canary", tokens=periodic(real, num, seed=seed))
    yield Cell(name="canary: one text tiled", kind="canary", tokens=tiled(real, num))
    yield Cell(name="canary: shuffled text", kind="canary", tokens=shuffled(real, num, seed=seed))
    name, model = list(run.models.items())[-1]
    few, steps = min(num, _FLOAT32_SAMPLES), max(settings.steps)
    tokens, nfe = model.sample(few, steps, seed=seed, batch_size=settings.batch_size, noise="legacy_fp32")
    yield Cell(
        name=f"canary: {name}, float32 noise", kind="canary", tokens=tokens, steps=steps, nfe=nfe, noise="float32"
    )


def _tail(run: Run, settings: ReportConfig) -> dict[str, float]:
    """The probe of the sampler in use; the samplers that need more than steps, or a particular network, are not probed."""
    if settings.sampler not in ("ancestral", "first_hitting", "first_hitting_parallel"):
        return {}
    how = {"sampler": settings.sampler}
    return tail_probe(run.student.tokenizer, steps=_PROBE_STEPS, seed=settings.seeds[0], settings=how)


def _interval(
    row: dict[str, Any], key: str, statistic: bootstrap.Statistic, values: ndarray, settings: ReportConfig
) -> None:
    one = bootstrap.interval(statistic, (values,), resamples=settings.bootstrap, seed=settings.seeds[0])
    row |= {key: one.estimate, f"{key}_low": one.low, f"{key}_high": one.high}


def _mean(values: ndarray) -> ndarray:
    return np.asarray(values.mean(-1))


def _perplexity(nats: ndarray) -> ndarray:
    return np.asarray(np.exp(nats.mean(-1)))


def _likelihood(run: Run, settings: ReportConfig, evaluators: list[Evaluator]) -> dict[str, Any]:
    """Perplexity bounds of held-out and zero-shot text, each of the one-token-a-step limit and of each step count, and last words."""
    limit, seed = settings.likelihood_sequences, settings.seeds[0]
    sets = {"held-out": run.validation[:limit]}
    if settings.zero_shot is not None:
        sets |= zero_shot_sets(Path(settings.zero_shot), run.student, limit=limit)
    texts = read_texts(Path(settings.lambada))[:limit] if settings.lambada else _texts(run, limit)
    rows, words, nats = [], [], {}
    common: dict[str, Any] = {"draws": settings.likelihood_draws, "lambdas": settings.lambdas, "seed": seed}
    common["batch_size"] = settings.batch_size
    for name, model in run.models.items():
        for where, x_ND in sets.items():
            row: dict[str, Any] = {"model": name, "set": where, "sequences": len(x_ND)}
            nats[name, where, "bound_ppl"] = marginal_bound(model, x_ND, **common).numpy() / x_ND.shape[1]
            for steps in settings.steps if where == "held-out" else ():
                bound_N = step_bound(model, x_ND, steps=steps, **common).numpy()
                nats[name, where, f"bound_ppl_{steps}_steps"] = bound_N / x_ND.shape[1]
            for (owner, place, key), values in nats.items():
                if (owner, place) == (name, where):
                    _interval(row, key, _perplexity, values, settings)
            rows.append(row)
        hits = last_words(model, texts, lambdas=settings.lambdas, seed=seed, batch_size=settings.batch_size).numpy()
        nats[name, "last words", "accuracy"] = hits
        row = {"model": name, "set": "last words", "sequences": len(texts)}
        _interval(row, "accuracy", _mean, hits, settings)
        words.append(row)
    comparisons = []
    for b, a in combinations(run.models, 2):
        for _, where, key in [one for one in nats if one[0] == a]:
            statistic = _mean if key == "accuracy" else _perplexity
            pair = (nats[a, where, key],), (nats[b, where, key],)
            one = bootstrap.paired_difference(statistic, *pair, resamples=settings.bootstrap, seed=seed)
            comparisons.append(
                {
                    "metric": f"{key}, {where}",
                    "of": a,
                    "minus": b,
                    "steps": 0,
                    "difference": one.estimate,
                    "difference_low": one.low,
                    "difference_high": one.high,
                    "p_value": one.p_value,
                }
            )
    return {"likelihood": rows, "last_words": words, "comparisons": comparisons}


def _texts(run: Run, limit: int) -> list[str]:
    """Held-out sequences as texts that end with a whole word: what follows the last space is left out."""
    tokenizer = run.student.tokenizer
    decoded = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in run.validation[:limit].tolist()]
    texts = [" ".join(text.split()[:-1]) for text in decoded]
    return [text for text in texts if len(text.split()) >= 2]


def _mixture(run: Run, settings: ReportConfig, evaluators: list[Evaluator]) -> dict[str, Any]:
    """Of each model with λ: correlations captured at several times, and samples with λ resampled, frozen, averaged."""
    found: dict[str, Any] = {"correlation": [], "latent_modes": [], "comparisons": []}
    x_ND = run.validation[: settings.likelihood_sequences]
    config = EvalConfig(
        steps=(settings.mixture_steps,),
        num_samples=settings.num_samples,
        batch_size=settings.batch_size,
        seed=settings.seeds[0],
        bootstrap=settings.bootstrap,
    )
    for name, model in run.models.items():
        if model.denoiser.latent is None:
            continue
        for t in _CORRELATION_TIMES:
            own_N, text_N = total_correlation(model, x_ND, t=t, lambdas=settings.lambdas, seed=settings.seeds[0])
            row: dict[str, Any] = {"model": name, "t": t, "sequences": len(x_ND)}
            _interval(row, "captured", _mean, own_N.numpy(), settings)
            _interval(row, "gain_on_text", _mean, text_N.numpy(), settings)
            found["correlation"].append(row)
        modes = latent_modes(model, lambdas=settings.lambdas, batch_size=settings.batch_size)
        measured = measure(
            {f"{name}, {mode}": sampler for mode, sampler in modes.items()},
            run.validation,
            tokenizer=model.tokenizer,
            evaluator=evaluators[0],
            config=config,
            scoring=settings.scoring(),
        )
        found["latent_modes"] += [row for row in measured.rows if row["model"] != "data"]
        found["comparisons"] += measured.comparisons
    return found


def _cost(run: Run, settings: ReportConfig, evaluators: list[Evaluator]) -> dict[str, Any]:
    how = {"sampler": settings.sampler, "grid": settings.grid, "noise": settings.noise}
    rows = sampling_costs(
        run.models,
        steps=settings.steps,
        batches=settings.cost_batches,
        repeats=settings.cost_repeats,
        seed=settings.seeds[0],
        settings=how,
    )
    return {"cost": rows}


def _manifest(
    run: Run, settings: ReportConfig, evaluators: list[Evaluator], encoder: Evaluator | None, report: dict[str, Any]
) -> dict[str, Any]:
    nfe: dict[str, dict[str, float]] = {}
    for row in [*report["rows"], *report.get("cost", ())]:
        nfe.setdefault(row["model"], {})[str(row["steps"])] = row["nfe"]
    tokenizer, scoring = run.student.tokenizer, settings.scoring()
    facts = [evaluator_facts(evaluator, tokenizer, scoring) for evaluator in evaluators]
    model_dtype = next(run.student.denoiser.parameters()).dtype
    return manifest(
        config={"report": dataclasses.asdict(settings), "run": run.settings},
        checkpoints=run.paths,
        seed=settings.seeds[0],
        sampler=f"{settings.sampler}, grid {settings.grid}",
        nfe=nfe,
        dtypes={"noise": _NOISE[settings.noise], "model": str(model_dtype)},
        evaluator={"judges": facts, "features": evaluator_facts(encoder, tokenizer, scoring) if encoder else None},
        length=run.student.length,
        tokenizer=fingerprint(tokenizer),
        seeds=list(settings.seeds),
    )

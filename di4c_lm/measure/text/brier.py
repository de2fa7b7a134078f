"""BrierLM: how well a model continues a text, by its samples alone, so that it compares models with a likelihood and without.

Shao et al. 2025, "Continuous Autoregressive Language Models" (arXiv 2510.27688). Axes: N prompts, K continuations of each, O = 4 orders.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from torch import Tensor

from di4c_lm.core.settings import check
from di4c_lm.measure.flow import Row, columns, difference, sampled
from di4c_lm.measure.settings import device_of
from di4c_lm.measure.statistics.bootstrap import Resampled, mean
from di4c_lm.measure.text.autoregressive import autoregressive_sampler
from di4c_lm.measure.text.counting import baselines, ngrams
from di4c_lm.measure.text.evaluator import load_evaluator
from di4c_lm.measure.text.gen_ppl import Baseline
from di4c_lm.measure.text.samples import TextModel, TextRun, sampler_of

ORDERS = (1, 2, 3, 4)


def brier_terms(x_NKO: Int64[Tensor, "N K O"], y_NO: Int64[Tensor, "N O"]) -> Float64[ndarray, "N O"]:
    """Of each prompt and each n = 1, ..., O: 2 p(y) - Σ_x p(x)² over the model's first n tokens x, y those of the text, without bias.

    The mean over the pairs of samples of 1{x_1 = y} + 1{x_2 = y} - 1{x_1 = x_2}: 1 for a model that is certain and right, -1 for one that
    is certain and wrong, in expectation largest for the text's own distribution. Raises `ValueError` for fewer than 2 samples.
    """
    count = x_NKO.shape[1]
    if count < 2:
        raise ValueError(f"brier_samples must be at least 2, got {count}")
    right_NKO = (x_NKO == y_NO[:, None]).cumprod(2).double()
    pairs = [(x_NKO[:, a] == x_NKO[:, b]).cumprod(1).double() for a, b in combinations(range(count), 2)]
    return (2 * right_NKO.mean(1) - torch.stack(pairs).mean(0)).cpu().numpy()


def brier_lm(*of_order: Float64[ndarray, "*R N"]) -> Float64[ndarray, "*R"]:
    """100 times the geometric mean over n of Brier-n, the mean over prompts; an estimate below 0 counts as 0, and so does the whole."""
    means = np.stack([values.mean(-1) for values in of_order])
    return np.asarray(100 * np.prod(np.maximum(means, 0), 0) ** (1 / len(of_order)))


def brier_part(run: TextRun, settings: Any, *_: Any) -> dict[str, list[Row]]:
    """BrierLM of every model and step count, of counting, and of an autoregressive model, on parts of validation sequences.

    In the task continuation the beginning of a sequence is given, and what is scored are the first 4 tokens behind it; in infilling all but
    4 tokens in the middle, which n-grams and autoregressive models cannot do. A row holds model, task, steps, nfe, `tokens_per_forward`
    (sampled tokens a network call), `brier_lm` with `_low`, `_high` and `_error` (95 % bootstrap over sequences, and its standard error),
    `brier_1` to `brier_4`, all in hundredths, `accuracy_1` to `accuracy_4`, the share of samples whose first n tokens are the text's,
    sequences and samples of each.
    Models of uniform noise, which keep no token as it is, are left out. Raises `ValueError` for a prompt that leaves fewer than 4 tokens.
    """
    length, seed = run.student.length, settings.seeds[0]
    prompt, most = settings.prompt_length or length // 2, length - len(ORDERS)
    check(1 <= prompt <= most, "prompt_length", prompt, f"1 to {most}, the samples' length being {length}")
    chosen_ND = run.some_validation(settings.brier_prompts, seed).cpu()
    models = {name: model for name, model in run.models.items() if model.masks}
    every = {name: Baseline(sampler_of(model, settings.batch_size, **settings.how)) for name, model in models.items()}
    if settings.baselines and run.training is not None:
        counted = ngrams(run.training, len(run.student.tokenizer))
        every |= baselines(run, counted, settings.batch_size, settings.how)
    if settings.autoregressive:
        name = run.evaluator if settings.autoregressive == "evaluator" else settings.autoregressive
        reading: dict[str, Any] = {
            "device": device_of(settings.device),
            "download": settings.evaluator_download,
            "cache": run.cache,
        }
        one = autoregressive_sampler(
            load_evaluator(name, **reading), run.student.tokenizer, length, settings.batch_size
        )
        every["autoregressive"] = Baseline(one, (1,))
    resampling = {"resamples": settings.bootstrap, "seed": seed}
    rows: list[Row] = []
    found: dict[tuple[str, str, int], dict[str, Resampled]] = {}
    for task in ("continuation", "infilling") if models else ():
        start = prompt if task == "continuation" else most // 2
        scored = slice(start, start + len(ORDERS))
        given = chosen_ND[:, :prompt] if task == "continuation" else _without(chosen_ND, scored, models)
        given_MP = given.repeat_interleave(settings.brier_samples, 0)
        num_sampled = length - prompt if task == "continuation" else len(ORDERS)
        for name, one in every.items():
            if task == "infilling" and one.steps is not None:
                continue  # it goes from left to right
            making = {name: lambda steps, seed, one=one, given=given_MP: one.sampler(given, steps, seed)}
            shape, steps = (len(given_MP), length), one.steps or settings.steps
            for (tokens_MD,), made in sampled(making, shape, steps=steps, seeds=(seed,), progress=True):
                x_NKO = tokens_MD.cpu()[:, scored].view(len(given), -1, len(ORDERS))
                values = _quantities(x_NKO, chosen_ND[:, scored])
                found[task, name, made["steps"]] = values
                nfe = float(made["nfe"])
                row: Row = {"model": name, "kind": "model" if name in models else "baseline", "task": task}
                row |= {"steps": made["steps"], "nfe": nfe, "tokens_per_forward": num_sampled / nfe if nfe else None}
                row |= columns(values, **resampling)
                row |= {"brier_lm_error": values["brier_lm"].interval(**resampling).error}
                rows.append(row | {"sequences": len(given), "samples": settings.brier_samples})
    comparisons = [
        difference(
            metric if task == "continuation" else f"{metric}, {task}",
            {"of": a, "minus": b, "steps": n},
            values[metric],
            found[task, b, n][metric],
            **resampling,
        )
        for b, a in combinations(models, 2)
        for (task, name, n), values in found.items()
        if name == a
        for metric in ("brier_lm", *(f"brier_{n}" for n in ORDERS))
    ]
    return {"brier": rows, "comparisons": comparisons}


def _without(x_ND: Int64[Tensor, "N D"], hidden: slice, models: Mapping[str, TextModel]) -> Int64[Tensor, "N D"]:
    """Sequences of which a part is MASK."""
    x_ND = x_ND.clone()
    x_ND[:, hidden] = next(iter(models.values())).mask_id
    return x_ND


def _quantities(x_NKO: Int64[Tensor, "N K O"], y_NO: Int64[Tensor, "N O"]) -> dict[str, Resampled]:
    terms_ON = brier_terms(x_NKO, y_NO).T
    right_ON = (x_NKO == y_NO[:, None]).cumprod(2).double().mean(1).T.numpy()
    found = {"brier_lm": Resampled(brier_lm, tuple(terms_ON))}
    found |= {f"brier_{n}": Resampled(mean, (100 * terms_ON[n - 1],)) for n in ORDERS}
    return found | {f"accuracy_{n}": Resampled(mean, (right_ON[n - 1],)) for n in ORDERS}

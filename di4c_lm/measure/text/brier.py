"""BrierLM: how well a model continues a text, by its samples alone, so that it compares models with a likelihood and without.

Shao et al. 2025, "Continuous Autoregressive Language Models" (arXiv 2510.27688). Axes: N prompts, K continuations of each, O = 4 orders.
"""

from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from torch import Tensor

from di4c_lm.core.settings import check
from di4c_lm.measure.flow import Row, columns, difference, sampled
from di4c_lm.measure.statistics.bootstrap import Resampled, mean
from di4c_lm.measure.text.counting import baselines, ngrams
from di4c_lm.measure.text.gen_ppl import Baseline
from di4c_lm.measure.text.samples import TextRun, sampler_of

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
    """BrierLM of every model and step count, and of counting, each prompt the beginning of a validation sequence.

    A row holds model, steps, nfe, `tokens_per_forward` (continued tokens a network call), `brier_lm` with `_low`, `_high` and `_error`
    (95 % bootstrap over prompts, and its standard error), `brier_1` to `brier_4`, all in hundredths, `accuracy_1` to `accuracy_4`,
    the share of continuations whose first n tokens are the text's, prompts, continuations. Models of uniform noise, which keep no prompt,
    are left out.
    Raises `ValueError` for a prompt that leaves fewer than 4 tokens.
    """
    length, seed = run.student.length, settings.seeds[0]
    prompt = settings.prompt_length or length // 2
    most = length - len(ORDERS)
    check(1 <= prompt <= most, "prompt_length", prompt, f"1 to {most}, the samples' length being {length}")
    chosen_ND = run.some_validation(settings.brier_prompts, seed).cpu()
    prompts_MP = chosen_ND[:, :prompt].repeat_interleave(settings.brier_samples, 0)
    y_NO = chosen_ND[:, prompt : prompt + len(ORDERS)]
    models = {name: model for name, model in run.models.items() if model.masks}
    every = {name: Baseline(sampler_of(model, settings.batch_size, **settings.how)) for name, model in models.items()}
    if settings.baselines and run.training is not None:
        counted = ngrams(run.training, len(run.student.tokenizer))
        every |= baselines(run, counted, settings.batch_size, settings.how)
    resampling = {"resamples": settings.bootstrap, "seed": seed}
    rows: list[Row] = []
    found: dict[tuple[str, int], dict[str, Resampled]] = {}
    for name, one in every.items():
        making = {name: lambda steps, seed, one=one: one.sampler(prompts_MP, steps, seed)}
        shape, steps = (len(prompts_MP), length), one.steps or settings.steps
        for (tokens_MD,), made in sampled(making, shape, steps=steps, seeds=(seed,), progress=True):
            x_NKO = tokens_MD.cpu()[:, prompt : prompt + len(ORDERS)].view(len(y_NO), -1, len(ORDERS))
            terms = brier_terms(x_NKO, y_NO).T
            score = Resampled(brier_lm, tuple(terms))
            right_ON = (x_NKO == y_NO[:, None]).cumprod(2).double().mean(1).T.numpy()
            parts = {f"brier_{n}": Resampled(mean, (100 * terms[n - 1],)) for n in ORDERS}
            found[name, made["steps"]] = {"brier_lm": score, **parts}
            parts |= {f"accuracy_{n}": Resampled(mean, (right_ON[n - 1],)) for n in ORDERS}
            nfe = float(made["nfe"])
            row = {"model": name, "kind": "model" if name in models else "baseline", "steps": made["steps"], "nfe": nfe}
            row |= {"tokens_per_forward": (length - prompt) / nfe if nfe else None}
            row |= columns({"brier_lm": score}, **resampling) | {"brier_lm_error": score.interval(**resampling).error}
            sizes = {"prompt_length": prompt, "prompts": len(y_NO), "continuations": settings.brier_samples}
            rows.append(row | columns(parts, **resampling) | sizes)
    comparisons = [
        difference(metric, {"of": a, "minus": b, "steps": n}, value, found[b, n][metric], **resampling)
        for b, a in combinations(models, 2)
        for n in settings.steps
        for metric, value in found[a, n].items()
    ]
    return {"brier": rows, "comparisons": comparisons}

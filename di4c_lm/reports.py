"""The report of a run of text: the one place that joins the text domain with the metrics."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from di4c_lm.domains.text import STUDENT, Run, TextModel
from di4c_lm.metrics.gen_ppl import PromptedSampler, Sampler, measure, measure_conditional
from di4c_lm.metrics.judge import load_judge
from di4c_lm.metrics.publish import publish
from di4c_lm.metrics.report import table
from di4c_lm.metrics.settings import GenPplConfig

logger = logging.getLogger(__name__)


def gen_ppl_report(run: Run, settings: GenPplConfig) -> str:
    """Measure teacher and student of `run` as `settings` say, write `report/gen_ppl.{json,csv,png}`, and return the table.

    Raises `ValueError` as `measure`, `load_judge` and `publish` do, and for a GPU that is not there.
    """
    device = _device(settings.device)
    judge = load_judge(settings.judge or run.judge, device=device)
    models = {"teacher": run.teacher, "student": run.student}
    for model in models.values():
        model.denoiser.to(device)
    common: dict[str, Any] = {
        "tokenizer": run.student.tokenizer,
        "judge": judge,
        "config": settings.evaluation(),
        "scoring": settings.scoring(),
    }
    prompting = settings.prompting().fit(run.student.length) if settings.conditional else None
    if prompting is not None:
        prompted = {name: _prompted(model, settings.batch_size) for name, model in models.items()}
        found = measure_conditional(prompted, run.validation, prompting=prompting, **common)
    else:
        free = {name: _free(model, settings.batch_size) for name, model in models.items()}
        found = measure(free, run.validation, **common)
    paths = publish(
        found,
        Path(settings.report) if settings.report else run.folder / "report",
        settings={"report": dataclasses.asdict(settings), "run": run.settings},
        checkpoints={"student": run.folder / STUDENT, "teacher": run.teacher_path},
        tokenizer=run.student.tokenizer,
        length=run.student.length,
        judge=judge,
        scoring=settings.scoring(),
        seed=settings.seed,
        model_dtype=next(run.student.denoiser.parameters()).dtype,
        prompting=prompting,
    )
    logger.info("report: %s", ", ".join(str(path) for path in paths.values()))
    return table(found.rows, found.comparisons)


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' is impossible: no GPU is visible; allowed are auto, cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _free(model: TextModel, batch_size: int) -> Sampler:
    def draw(num_samples: int, steps: int, seed: int) -> tuple[Tensor, float]:
        return model.sample(num_samples, steps, seed=seed, batch_size=batch_size)

    return draw


def _prompted(model: TextModel, batch_size: int) -> PromptedSampler:
    def draw(prompts_NP: Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
        x_ND = torch.full((len(prompts_NP), model.length), model.process.mask_id)
        x_ND[:, : prompts_NP.shape[1]] = prompts_NP
        return model.sample(len(x_ND), steps, seed=seed, batch_size=batch_size, x_init=x_ND)

    return draw

"""The report of a finished run on images: the one place that joins the image domains' runs with the metrics.

A run's folder says in `parts.json` under "domain" which of `LOADERS` reads it; one of CIFAR-10 has teacher/ and student/ and no such file.
"""

import dataclasses
import importlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from di4c_lm.data.images.images import Split
from di4c_lm.measure.images.report import image_report
from di4c_lm.measure.images.samplers import ImageSampler
from di4c_lm.measure.images.settings import ImageReportConfig
from di4c_lm.measure.render.images import image_table, publish_images

logger = logging.getLogger(__name__)

# Domain to the module whose `load_run(run_dir, settings, device) -> ImageRun` reads a finished run of it.
LOADERS = {"cifar10": "di4c_lm.domains.pixels.report", "imagenet": "di4c_lm.domains.codes.report"}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageRun:
    """A finished run: its samplers, the teacher first, its images, and where each model's weights came from.

    `config`: the run's settings as plain values. `dtypes`: of each model, for the manifest.
    """

    folder: Path
    samplers: Sequence[ImageSampler]
    images: Split
    config: Mapping[str, Any]
    checkpoints: Mapping[str, Path]
    dtypes: Mapping[str, str]
    cache_dir: Path


def load_image_run(run_dir: Path, settings: ImageReportConfig) -> ImageRun:
    """A finished run of images from its folder. Raises `ValueError` for a folder of another kind, and as the domain's loader does."""
    file = run_dir / "parts.json"
    unnamed = "cifar10" if (run_dir / "teacher").is_dir() else None
    domain = json.loads(file.read_text()).get("domain") if file.is_file() else unnamed
    if domain not in LOADERS:
        raise ValueError(
            f"run={str(run_dir)!r}: expected a run of one of {', '.join(LOADERS)} by {file.name}, found "
            f"{f'domain {domain!r}' if domain else 'none named'}; runs of text are measured by eval/report.py"
        )
    return importlib.import_module(LOADERS[domain]).load_run(run_dir, settings, _device(settings.device))


def run_report(run: ImageRun, settings: ImageReportConfig) -> str:
    """Measure the samplers of `run`, write images.{json,csv,png} and samples.png, and return the table.

    Raises `ValueError` as `image_report` and `publish_images` do, and for a GPU that is not there.
    """
    found = image_report(
        run.samplers,
        run.images.train,
        run.images.validation,
        settings,
        cache_dir=run.cache_dir,
        device=_device(settings.device),
    )
    paths = publish_images(
        found,
        Path(settings.report) if settings.report else run.folder / "report",
        run.samplers,
        settings=settings,
        config={"report": dataclasses.asdict(settings), "run": dict(run.config)},
        checkpoints=run.checkpoints,
        dtypes=run.dtypes,
    )
    logger.info("report: %s", ", ".join(str(path) for path in paths.values()))
    return image_table(found)


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' is impossible: no GPU is visible; allowed are auto, cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"

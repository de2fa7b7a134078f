"""The report of a finished run on images, of either kind."""

from collections.abc import Sequence
from typing import Any

from di4c_lm.core.settings import build, fields, to_dict
from di4c_lm.data.images.images import Split
from di4c_lm.domains.domain import FinishedRun, find_run
from di4c_lm.measure.images.report import ImageReportConfig, ImageRun, run_report
from di4c_lm.measure.images.samplers import ImageSampler


def images(settings: ImageReportConfig) -> str:
    """Measure the models of the run that `settings` name, write its report and return the table. Raises `ValueError` for a run of text."""
    run = FinishedRun.read(find_run(settings.run, settings.outputs))
    if run.domain.name == "text":
        raise ValueError(f"run must be one of images, got {run.folder}: runs of text are measured by eval/report.py")
    return run.domain.report(run, settings)


def closing_settings(config: Any) -> ImageReportConfig:
    """The closing report's settings, as `eval/images.py` takes them. Raises `ValueError` for impossible ones."""
    known = fields(ImageReportConfig)
    chosen = {name: value for name, value in to_dict(config.eval).items() if name in known}
    return build(ImageReportConfig, {**chosen, "device": config.run.device}, key="eval")


def report(run: FinishedRun, samplers: Sequence[ImageSampler], images: Split, settings: ImageReportConfig) -> str:
    """Measure `samplers`, write the run's report and return the table. Raises `ValueError` as `run_report` does."""
    measured = ImageRun(
        folder=run.folder,
        samplers=samplers,
        images=images,
        config=to_dict(run.settings),
        checkpoints=run.models,
        dtypes=dict.fromkeys(run.models, "float32"),
        cache_dir=run.settings.run.cache,
    )
    return run_report(measured, settings)

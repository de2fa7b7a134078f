"""The report of a finished run on images: its folder says in `parts.json` under "domain" which of `LOADERS` reads it.

One of CIFAR-10 has teacher/ and student/ and no such file.
"""

import importlib
import json
from pathlib import Path

from di4c_lm.measure.images.report import ImageReportConfig, ImageRun, run_report
from di4c_lm.measure.runs import find_run
from di4c_lm.measure.settings import device_of

# Domain to the module whose `load_run(run_dir, settings, device) -> ImageRun` reads a finished run of it.
LOADERS = {"cifar10": "di4c_lm.domains.pixels.report", "imagenet": "di4c_lm.domains.codes.report"}


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
    return importlib.import_module(LOADERS[domain]).load_run(run_dir, settings, device_of(settings.device))


def images(settings: ImageReportConfig) -> str:
    """Measure the samplers of the run that `settings` name, write its report and return the table."""
    return run_report(load_image_run(find_run(settings.run, settings.outputs), settings), settings)

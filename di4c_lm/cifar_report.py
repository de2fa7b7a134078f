"""A finished run of the CIFAR-10 domain, as `eval/images.py` reads it."""

from pathlib import Path

from di4c_lm import image_cli
from di4c_lm.config.checks import to_dict
from di4c_lm.domains import cifar10
from di4c_lm.image_reports import ImageRun
from di4c_lm.metrics.image_settings import ImageReportConfig


def load_run(run_dir: Path, settings: ImageReportConfig, device: str) -> ImageRun:
    """Teacher and student with the run's own sampler, and its images. Raises `ValueError` as `cifar10.load_run` does."""
    run = cifar10.load_run(run_dir)
    return ImageRun(
        folder=run_dir,
        samplers=run.samplers(settings.batch_size, device),
        images=run.images,
        config=to_dict(run.config),
        checkpoints=run.paths,
        dtypes={"network": "float32"},
        cache_dir=image_cli.cache_dir(run.config.run),
    )

"""A finished run of the CIFAR-10 domain, as `eval/images.py` reads it."""

from pathlib import Path

from di4c_lm.core import image_cli
from di4c_lm.core.settings import to_dict
from di4c_lm.domains.pixels import model as cifar10
from di4c_lm.measure.images.report import ImageReportConfig, ImageRun


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

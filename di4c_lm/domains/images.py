"""What both kinds of images share: how a run's images are read, and the report on a finished run."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from di4c_lm.checkpoints.load import DomainName, recognise
from di4c_lm.core.retry import is_local
from di4c_lm.core.settings import to_dict
from di4c_lm.data.images.images import Split
from di4c_lm.data.images.sources import Fit, load_split
from di4c_lm.data.records.shards import is_shards
from di4c_lm.domains.domain import FinishedRun, find_run, sampling, sampling_facts
from di4c_lm.domains.settings import closing
from di4c_lm.measure.images.report import ImageReportConfig, ImageRun, ImageSampler, image_report, image_table, publish
from di4c_lm.measure.render.files import with_page
from di4c_lm.measure.settings import device_of


def images(settings: ImageReportConfig) -> str:
    """Measure the models of the run that `settings` name, write its report and return the table. Raises `ValueError` for a run of text."""
    run = FinishedRun.read(find_run(settings.run, settings.outputs))
    if run.domain.name == "text":
        raise ValueError(
            f"run must be one of images, got {run.folder}: runs of text are measured by `di4c eval report`"
        )
    return run.domain.report(run, settings)


def image_checks(settings: Any, domain: DomainName) -> dict[str, Callable[[], object]]:
    """See `Domain.checks`: images, teacher and VQGAN."""
    teacher, vqgan = settings.teacher, getattr(settings, "vqgan", None)
    given = settings.objective.needs_teacher and teacher.kind == "pretrained"
    return {
        "data": lambda: settings.data.kind != "files" or check_exists(settings.data.source, "data.path"),
        "teacher": lambda: given and recognise(teacher.path, domain),
        "vqgan.path": lambda: vqgan is None or vqgan.path is None or check_exists(vqgan.path, "vqgan.path"),
    }


def check_exists(source: str, key: str) -> None:
    """Raise `ValueError` that names `key` for a path that is absent; a name of the hub passes."""
    if not Path(source).expanduser().exists() and (is_local(source) or Path(source).suffix):
        raise ValueError(f"{key}: there is no file or folder {source}")


def load_images(settings: Any) -> Split:
    """The training and validation images that a run's `settings.data` names.

    Raises `ValueError` as `load_split` does, for a folder of codes, which holds none, and for images of another size than `data.size`.
    """
    data = settings.data
    if is_shards(Path(data.source).expanduser()):
        raise ValueError(f"data.path={data.path!r} holds codes: allowed here are the images that they were made of")
    size = None if data.size is None else (data.size, data.size)
    split = load_split(
        data.source,
        seed=settings.train.seed,
        validation_share=data.validation_share,
        levels=getattr(data, "levels", None),
        fit=Fit(size=size, channels=data.channels, crop=data.crop),
        skip_bad=data.skip_bad,
    )
    if size is not None and split.train.shape[:2] != size:
        raise ValueError(
            f"{data.source}: expected images of {size[0]} x {size[1]} pixels, found {split.train.shape[:2]}"
        )
    return split


def samplers(run: FinishedRun, batch_size: int, device: str) -> list[ImageSampler]:
    """The models of a run by its `sampler` and `decoding`."""
    models: dict[str, Any] = {
        name: run.domain.model.from_pretrained(path, device=device) for name, path in run.models.items()
    }
    return [
        ImageSampler(
            name=name,
            sample=functools.partial(model.images, batch_size=batch_size, **sampling(run.settings, name, models)),
            facts={**sampling_facts(run.settings, model), **model.facts},
            num_classes=model.num_classes,
        )
        for name, model in models.items()
    ]


def report(
    run: FinishedRun,
    settings: ImageReportConfig | None = None,
    images: Split | None = None,
    measured: Sequence[ImageSampler] | None = None,
) -> str:
    """Measure the models of a run, or the samplers `measured`, as `settings` say, or the run's own do; write the report, return its table.

    `images` spares reading them again. Raises `ValueError` as `image_report` does, and where of the images only the codes are at hand.
    """
    chosen = settings or closing(run.settings, ImageReportConfig)
    found = ImageRun(
        folder=run.folder,
        samplers=samplers(run, chosen.batch_size, device_of(chosen.device)) if measured is None else measured,
        images=images or load_images(run.settings),
        config=to_dict(run.settings),
        checkpoints=run.models,
        cache_dir=run.settings.run.cache,
    )
    measured_images = image_report(found, chosen)
    return with_page(image_table(measured_images), publish(measured_images, found, chosen))

"""Image samplers at several step counts, beside real images: what `di4c eval images` and the end of an image run both measure.

It knows samplers by a protocol and nothing of our models. Axes: N images, H rows, W columns, C channels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from di4c_lm.core.settings import Ints, at_least, check, section, setting, to_dict
from di4c_lm.data.images.images import Split
from di4c_lm.measure.flow import Missing, Row, columns, difference, measured, nfe_of, sampled
from di4c_lm.measure.images.classifier import classifier_features
from di4c_lm.measure.images.features import FeatureNet, folder_features, inception_features
from di4c_lm.measure.images.reference import Reference, find_reference, some
from di4c_lm.measure.images.scores import METRICS, ImageSamples
from di4c_lm.measure.render.files import Layout, write_report
from di4c_lm.measure.render.manifest import manifest
from di4c_lm.measure.render.pictures import Panel, sample_sheet, training_curves
from di4c_lm.measure.render.tables import LEAD, NFE, Column, table, with_differences
from di4c_lm.measure.settings import Measurement, device_of, distinct
from di4c_lm.training.metric_logger import read_metrics

DATA = "data"
_BY_PROTOCOL = {"full": 50_000, "quick": 512}
LAYOUT = Layout(
    data="real images",
    panels=(
        Panel("fid", "Fréchet distance", "lower is nearer"),
        Panel("inception_score", "Inception Score", "real images are the mark"),
        Panel("precision", "precision", "share of samples among real images"),
        Panel("recall", "recall", "share of real images among samples"),
    ),
    headings={key: heading for metric in METRICS for key, heading in metric.headings.items()},
    details={key: heading for metric in METRICS for key, heading in metric.details.items()},
)


@section
class ImageReportConfig(Measurement):
    """FID, Inception Score, precision, recall, density and coverage of a run's teacher and student, beside real images."""

    protocol: Literal["full", "quick"] = setting(
        "quick", "samples for each model and number of steps; full: 50,000, quick: 512"
    )
    num_samples: int = setting(0, "samples for each model and number of steps, over all seeds; 0: as the protocol says")
    steps: Ints = setting((2, 4, 8, 16), "numbers of sampling steps that are compared")
    seeds: Ints = setting((0,), "random seeds of sampling; with several, intervals are over seeds and images")
    features: str = setting(
        "classifier",
        "classifier (trained on the run's images) | inception | a folder of a vision model or a file of Inception's weights",
    )
    against: Literal["train", "validation"] = setting(
        "train", 'the images compared with: train | validation; the row "data" is a part of the others'
    )
    reference: str | None = setting(
        None, "a file of reference statistics: read where it exists, else made and written there; null: made"
    )
    permutations: int = setting(499, "exchanges behind the test of the kernel distance; 0: no kernel distance")
    kernel_images: int = setting(1000, "images of each side in the kernel distance, at most")
    neighbours: int = setting(10_000, "images of each side in precision, recall, density and coverage, at most")
    k_manifold: int = setting(3, "the neighbour that bounds precision's and recall's balls")
    k_density: int = setting(5, "the neighbour that bounds density's and coverage's")
    grid: int = setting(12, "images in a row of samples.png")

    def __post_init__(self) -> None:
        Measurement.__post_init__(self)
        at_least(self, 0, "num_samples", "permutations")
        at_least(self, 1, "grid", "k_manifold", "k_density")
        at_least(self, 2, "kernel_images")
        at_least(self, max(self.k_manifold, self.k_density) + 1, "neighbours")
        distinct(self, 0, "seeds")
        count, seeds = self.num_samples, len(self.seeds)
        enough = count == 0 or (count >= 2 * seeds and count % seeds == 0)
        check(enough, "num_samples", count, f"0, or a multiple of the number of seeds, {seeds}, at least twice it")

    @property
    def each_seed(self) -> int:
        """Samples a model, step count and seed; what a protocol says is rounded up to a multiple of the seeds."""
        return -(-(self.num_samples or _BY_PROTOCOL[self.protocol]) // len(self.seeds))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSampler:
    """A model as reports on images call it.

    Args:
        sample: number of images, steps, seed and the class of each image to images of 0..255, the same for the same arguments, and the
            network calls that each took.
        facts: what shapes the images, JSON-ready: sampler, guidance, temperature, schedule, weights, ...
        num_classes: C; 0: it takes no classes, and is given None.
    """

    name: str
    sample: Callable[[int, int, int, Any], tuple[UInt8[ndarray, "N H W C"], float]]
    facts: Mapping[str, Any]
    num_classes: int = 0


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageReport:
    """`rows`: one a model and step count. `shown`: the first images of each. `features`, `reference`: which they were.

    `comparisons`: FID and Inception Score of each other model less the first one's, at as many steps and at twice as many.
    """

    rows: list[Row]
    comparisons: list[Row]
    shown: dict[tuple[str, int], UInt8[ndarray, "N H W C"]]
    features: Mapping[str, Any]
    reference: Mapping[str, Any]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageRun:
    """A finished run: its samplers, the teacher first, its images, and where each model's weights came from.

    `config`: the run's settings as plain values.
    """

    folder: Path
    samplers: Sequence[ImageSampler]
    images: Split
    config: Mapping[str, Any]
    checkpoints: Mapping[str, Path]
    cache_dir: Path


def image_report(run: ImageRun, settings: ImageReportConfig, *, progress: bool = True) -> ImageReport:
    """Measure every sampler at every step count, and real images. The first sampler, as a rule the teacher, is the one compared with.

    A row holds model, steps, nfe, num_samples, seconds; fid, inception_score, precision, recall, density, coverage, label_agreement (share
    of images that the classifier takes for the class asked for), each with `_low` and `_high` of a 95 % interval; fid_infinity (the FID
    that infinitely many samples would have); kid with its interval and kid_p, of a permutation test of samples against real images. What
    the features or the reference cannot give is None. The row "data" has steps 0: real images that are not in the reference. Intervals
    hold the reference fixed and resample the images of the row; those of recall and coverage resample the reference's.

    Raises `ValueError`: two samplers of one name or one called "data", images of another shape than the real ones, features that cannot be
    had, a reference that does not fit, a GPU that is not there.
    """
    names = [sampler.name for sampler in run.samplers]
    if DATA in names or len(set(names)) != len(names):
        raise ValueError(f"samplers must have names of their own, none of them {DATA!r}, got {names}")
    net = feature_net(run, settings, progress=progress)
    against, others = run.images.train, run.images.validation
    if settings.against == "validation":
        against, others = others, against
    path = Path(settings.reference).expanduser() if settings.reference else None
    reference = find_reference(net, against, path=path, keep=max(settings.neighbours, settings.kernel_images))
    bench = _Bench(net=net, reference=reference, settings=settings)
    resampling = {"resamples": settings.bootstrap, "seed": settings.seeds[0]}
    rows: list[Row] = []
    quantities: dict[tuple[str, int], Row] = {}
    shown: dict[tuple[str, int], UInt8[ndarray, "N H W C"]] = {}
    chosen = some(len(others.labels), settings.each_seed * len(settings.seeds))
    images = others.as_bytes()[chosen]
    real = ImageSamples(name=DATA, kind="data", images=images, labels=others.labels[chosen], embedded=net.embed(images))
    for one in chain([real], _sampled(run.samplers, bench, images.shape[1:], progress=progress)):
        cell = (one.name, one.steps)
        quantities[cell] = measured(one, bench, METRICS)
        row: Row = {"model": one.name, "steps": one.steps, "nfe": one.nfe, "num_samples": len(one.images)}
        rows.append(row | columns(quantities[cell], **resampling) | {"seconds": round(one.seconds, 3)})
        shown[cell] = one.images[some(len(one.images), settings.grid) if one.kind == "data" else slice(settings.grid)]
    return ImageReport(
        rows=rows,
        comparisons=_comparisons(quantities, names, settings, resampling),
        shown=shown,
        features=net.facts,
        reference=bench.reference.described(),
    )


def feature_net(run: ImageRun, settings: ImageReportConfig, *, progress: bool = True) -> FeatureNet:
    """The network that `settings.features` names. Raises `ValueError` as its makers do."""
    device = device_of(settings.device)
    if settings.features == "inception":
        return inception_features(device=device)
    if settings.features != "classifier":
        path = Path(settings.features).expanduser()
        return (inception_features if path.suffix == ".pth" else folder_features)(path, device=device)
    return classifier_features(run.images, cache_dir=run.cache_dir, device=device, progress=progress)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Bench:
    net: FeatureNet
    reference: Reference
    settings: ImageReportConfig


def _sampled(
    samplers: Sequence[ImageSampler], bench: _Bench, shape: tuple[int, ...], *, progress: bool
) -> Iterator[ImageSamples]:
    """Every sampler at every step count, for all seeds in turn; classes are asked for evenly."""
    settings = bench.settings
    count, seeds = settings.each_seed, settings.seeds
    labels = {
        one.name: np.arange(count, dtype=np.int64) % one.num_classes if one.num_classes else None for one in samplers
    }
    asked = {one.name: lambda n, seed, one=one: one.sample(count, n, seed, labels[one.name]) for one in samplers}
    for batches, how in sampled(asked, (count, *shape), steps=settings.steps, seeds=seeds, progress=progress):
        images, asked_for = np.concatenate(batches), labels[how["name"]]
        yield ImageSamples(
            **how,
            images=images,
            labels=None if asked_for is None else np.tile(asked_for, len(seeds)),
            embedded=bench.net.embed(images),
        )


def _comparisons(
    quantities: Mapping[tuple[str, int], Row], names: list[str], settings: ImageReportConfig, resampling: dict[str, int]
) -> list[Row]:
    """Each other model at K steps less the first one at K, and at 2 K where that was measured."""
    compared = [key for metric in METRICS for key in metric.compared]
    return [
        difference(
            metric,
            {"of": name, "steps": steps, "minus": names[0], "minus_steps": base_steps},
            quantities[name, steps][metric],
            quantities[names[0], base_steps][metric],
            **resampling,
        )
        for name in names[1:]
        for steps in settings.steps
        for base_steps in (steps, 2 * steps)
        if base_steps in settings.steps
        for metric in compared
        if not isinstance(quantities[name, steps][metric], Missing)
    ]


def publish(found: ImageReport, run: ImageRun, settings: ImageReportConfig) -> dict[str, Path]:
    """Writes the report on a run; the files' paths by kind. Raises as `manifest` and `write_report` do."""
    facts = manifest(
        config={"report": to_dict(settings), "run": dict(run.config)},
        checkpoints=run.checkpoints,
        seed=settings.seeds[0],
        sampler=", ".join(f"{one.name}: {one.facts.get('sampler', 'unnamed')}" for one in run.samplers),
        nfe=nfe_of(found.rows),
        dtypes=dict.fromkeys(run.checkpoints, "float32"),
        evaluator=found.features,
        seeds=list(settings.seeds),
        protocol=settings.protocol,
        num_samples=settings.each_seed * len(settings.seeds),
        samplers={one.name: dict(one.facts) for one in run.samplers},
        reference=dict(found.reference),
        against=settings.against,
    )
    titles = {(name, n): f"{name}, {n} step{'s' if n > 1 else ''}" for name, n in found.shown} | {
        (DATA, 0): LAYOUT.data
    }
    return write_report(
        settings.folder(run.folder),
        "images",
        {"manifest": facts, "rows": found.rows, "comparisons": found.comparisons},
        LAYOUT,
        title=f"Features: {found.features['kind']}",
        subtitle=f"{facts['time']} · commit {facts['commit'][:12]} · {_provenance(found)} · 95 % intervals below each number",
        pictures={
            "samples": sample_sheet({titles[cell]: images for cell, images in found.shown.items()}),
            "training": training_curves(read_metrics(run.folder)),
        },
    )


def _provenance(found: ImageReport) -> str:
    count = found.reference["count"] or "an unknown number of"
    return f"reference: {found.reference['name']}, {count} images, SHA-256 {found.reference['sha256'][:12]}"


def image_table(found: ImageReport) -> str:
    """Plain text for a terminal: which features and reference, a line a model and step count, then the tested differences."""
    every = {**LAYOUT.headings, **LAYOUT.details}
    names = {key: every[key] for key in _COLUMNS if any(row[key] is not None for row in found.rows)}
    numbers = [(name, lambda row, key=key: _with_interval(row, key)) for key, name in names.items()]
    columns: list[Column] = [*LEAD, NFE, ("N", lambda row: str(row["num_samples"])), *numbers]
    columns.append(("FID at ∞", lambda row: _short(row["fid_infinity"])))
    origin = (
        f"features: {found.features['name']} ({found.features['kind']})\n"
        f"{_provenance(found)}; an FID depends on both numbers of images"
    )
    return with_differences(f"{origin}\n\n{table(found.rows, columns)}", found.comparisons, names)


_COLUMNS = ("fid", "inception_score", "kid", "precision", "recall", "density", "coverage", "label_agreement")


def _with_interval(row: Row, key: str) -> str:
    if row[key] is None:
        return "-"
    return f"{_short(row[key])} ({_short(row[f'{key}_low'])} to {_short(row[f'{key}_high'])})"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"

"""What a report on images may be told, typed. Checks itself like `di4c_lm.config`."""

from typing import Literal

from pydantic.dataclasses import dataclass

from di4c_lm.core.settings import STRICT, Ints, check

_BY_PROTOCOL = {"full": 50_000, "quick": 512}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImageReportConfig:
    """FID, Inception Score, precision, recall, density and coverage of a run's teacher and student, beside held-out images.

    run              a run's folder; null: the newest under `outputs` that has a student
    outputs          where runs live
    report           folder for images.json, .csv, .png and samples.png; null: <run>/report
    protocol         full: 50,000 samples a model and step count | quick: 512
    num_samples      samples a model and step count, over all seeds; 0: what the protocol says
    steps            sampling steps, e.g. [2,4,8,16]
    seeds            of sampling; several: intervals are over seeds and images
    features         classifier (trained on the run's images) | inception | a folder of a vision model or a file of Inception's weights
    against          the images compared with: train | validation; the row "data" is a part of the others
    reference        a file of reference statistics: read where it exists, else made and written there; null: made
    bootstrap        resamples behind each 95 % interval
    permutations     exchanges behind the test of the kernel distance; 0: no kernel distance
    kernel_images    images of each side in the kernel distance, at most
    neighbours       images of each side in precision, recall, density and coverage, at most
    k_manifold       the neighbour that bounds precision's and recall's balls
    k_density        the neighbour that bounds density's and coverage's
    grid             images a row of samples.png
    batch_size       images sampled at once
    device           auto | cpu | cuda
    """

    run: str | None = None
    outputs: str = "outputs"
    report: str | None = None
    protocol: Literal["full", "quick"] = "quick"
    num_samples: int = 0
    steps: Ints = (2, 4, 8, 16)
    seeds: Ints = (0,)
    features: str = "classifier"
    against: Literal["train", "validation"] = "train"
    reference: str | None = None
    bootstrap: int = 1000
    permutations: int = 499
    kernel_images: int = 1000
    neighbours: int = 10_000
    k_manifold: int = 3
    k_density: int = 5
    grid: int = 12
    batch_size: int = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        least = {"num_samples": 0, "bootstrap": 1, "permutations": 0, "kernel_images": 2, "batch_size": 1, "grid": 1}
        least |= {"k_manifold": 1, "k_density": 1}
        for name, low in least.items():
            check(getattr(self, name) >= low, name, getattr(self, name), f"a value of at least {low}")
        for name, low in {"steps": 1, "seeds": 0}.items():
            value = getattr(self, name)
            distinct = len(value) > 0 and len(set(value)) == len(value) and min(value) >= low
            check(distinct, name, value, f"one or more distinct values of at least {low}")
        nearest = max(self.k_manifold, self.k_density) + 1
        check(self.neighbours >= nearest, "neighbours", self.neighbours, f"a value of at least {nearest}")
        asked = self.num_samples
        enough = asked == 0 or (asked >= 2 * len(self.seeds) and asked % len(self.seeds) == 0)
        check(
            enough,
            "num_samples",
            asked,
            f"0, or a multiple of the number of seeds, {len(self.seeds)}, at least twice it",
        )

    @property
    def each_seed(self) -> int:
        """Samples a model, step count and seed; what a protocol says is rounded up to a multiple of the seeds."""
        return -(-(self.num_samples or _BY_PROTOCOL[self.protocol]) // len(self.seeds))

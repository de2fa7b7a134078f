"""Teacher and student of tauLDR's chain on tiny images whose distribution is known exactly: how far their samples are from it.

    python tools/check_image_law.py [size=3] [levels=3] [noise=0.15] [images=20000] [samples=20000] [key=value ...]

Images are bars on noise (`Bars` of the synthetic images). The other keys are those of launch/train_cifar10.py; eval.steps and eval.seeds
say what is sampled. A line shows the total variation between samples and distribution beside that of as many exact samples (mean, 95 %
quantile, p-value), and the mean of -log p over the samples less the distribution's entropy in nats, 0 for exact ones.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.core.settings import section, setting
from di4c_lm.data.images.builtin import Bars
from di4c_lm.domains.domain import sampling
from di4c_lm.domains.pixels.settings import PixelSettings
from di4c_lm.measure.statistics.exact import ExactCheck, check_samples, product_of_marginals, total_variation
from di4c_lm.runs.command import own_arguments, run_command

# Images of three rows are not halved.
SMALL = ("model.multipliers=[1]", "model.attention_scale=0", "decoding.end=sample")


@section
class Settings:
    """How far the samples of a teacher and a student are from a distribution of tiny images that is known exactly."""

    size: int = setting(3, "rows and columns")
    levels: int = setting(3, "of a pixel")
    noise: float = setting(0.15, "chance that a pixel is another than the bars say")
    images: int = setting(20_000, "images to train on")
    samples: int = setting(20_000, "images sampled a model, step count and seed")


def main(argv: Sequence[str]) -> int:
    """Train, sample, print the table. The exit status; bad input ends the program with 2."""
    own, rest = own_arguments(Settings, argv)
    return run_command("python tools/check_image_law.py", Settings, lambda settings: _check(settings, rest), own)


def _check(settings: Settings, arguments: Sequence[str]) -> str:
    bars = Bars(size=settings.size, levels=settings.levels, noise=settings.noise)
    chain = [f"chain.rate_sigma={bars.levels / 17}", f"chain.q_sigma={2 * bars.levels}"]
    own = [*chain, f"mixture.codebook_size={bars.levels}"]
    config = compose(PixelSettings, [*SMALL, *own, *arguments], CONFIGS, "cifar10")
    found = {
        (name, steps, seed): _checked(model, bars, config, steps, seed, settings.samples)
        for name, model in _trained(config, bars, settings.images).items()
        for steps in config.eval.steps
        for seed in config.eval.seeds
    }
    return _table(bars, found)


def _trained(config: PixelSettings, bars: Bars, count: int) -> dict[str, Any]:
    from di4c_lm.core.cache import Cache
    from di4c_lm.data.images.images import Split
    from di4c_lm.domains.pixels.domain import DOMAIN, PixelData
    from di4c_lm.runs import recipe
    from di4c_lm.runs.recipe import Interrupted
    from di4c_lm.training.distributed import init_distributed, set_threads

    world = init_distributed(config.run.device)
    set_threads(config.run.threads)
    images = bars.images(count, config.train.seed)
    data = PixelData(images=Split(images, images), flip=config.data.flip)
    try:
        teacher = recipe.find_teacher(DOMAIN, config, data, world, Cache(config.run.cache, world))
        student = recipe.new_student(DOMAIN, config, data, teacher)
        with tempfile.TemporaryDirectory() as folder:
            source = data.source(config.train.seed)
            trained = recipe.fit(config, student, teacher, source, world, Path(folder))
    except Interrupted as interrupted:
        raise SystemExit(128 + interrupted.number) from interrupted
    student.denoiser.load_state_dict(trained.ema)
    models = {"teacher": teacher, "student": student}
    for model in models.values():
        model.denoiser.to(world.device).eval()
    return models


def _checked(model: Any, bars: Bars, config: PixelSettings, steps: int, seed: int, count: int) -> ExactCheck:
    x_ND, _ = model.sample_states(
        count, steps, seed=seed, batch_size=config.eval.batch_size, **sampling(config, "student", {"student": model})
    )
    return check_samples(bars.index(x_ND.numpy()), bars.distribution(), seed=seed)


def _table(bars: Bars, found: dict[tuple[str, int, int], ExactCheck]) -> str:
    exact = bars.distribution()
    product = total_variation(product_of_marginals(exact, bars.enumerate()), exact)
    lines = [
        f"{bars}: {bars.num_images} images; the product of the marginals is {product:.3f} away",
        f"{'model':8} {'steps':>5} {'seed':>4} {'variation':>9} {'exact':>7} {'95 %':>7} {'p':>6} {'excess nats':>11}",
    ]
    for (name, steps, seed), one in found.items():
        lines.append(
            f"{name:8} {steps:5} {seed:4} {one.observed:9.4f} {one.floor:7.4f} {one.floor_high:7.4f} {one.p_value:6.3f} "
            f"{one.excess_nats:11.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

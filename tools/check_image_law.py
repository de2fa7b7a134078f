"""Teacher and student of tauLDR's chain on tiny images whose law is known exactly: how far what they draw is from it.

python tools/check_image_law.py [key=value ...] [--size 3] [--levels 3] [--noise 0.15] [--images 20000] [--samples 20000]

Images are bars on noise (`Bars` of the synthetic images). The keys are those of launch/train_cifar10.py; eval.steps and eval.seeds
say what is drawn. A line shows the total variation between samples and law beside that of as many exact samples (mean, 95 % quantile,
p-value), and the mean of -log p over the samples less the law's entropy in nats, 0 for exact ones.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from di4c_lm.core import cli, image_cli
from di4c_lm.data.images.synthetic_images import Bars
from di4c_lm.domains.pixels.model import sampler_of
from di4c_lm.domains.pixels.settings import CifarConfig
from di4c_lm.measure.statistics.exact import ExactCheck, check_samples, product_of_marginals, total_variation

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SMALL = (
    "model.multipliers=[1]",
    "model.attention_scale=0",
    "sampler.end=draw",
)  # images of three rows are not halved


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, draw, print the table. Returns 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="check_image_law.py", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings of the run")
    parser.add_argument("--size", type=int, default=3, help="rows and columns")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--noise", type=float, default=0.15)
    parser.add_argument("--images", type=int, default=20_000, help="images to train on")
    parser.add_argument("--samples", type=int, default=20_000, help="images drawn a model, step count and seed")
    given = parser.parse_args(arguments)
    cli.log_to_terminal()
    try:
        law = Bars(size=given.size, levels=given.levels, noise=given.noise)
        chain = [f"chain.rate_sigma={law.levels / 17}", f"chain.q_sigma={2 * law.levels}"]
        own = [*chain, f"lambda.codebook_size={law.levels}"]
        config = image_cli.load(CifarConfig, [*SMALL, *own, *given.words], CONFIGS, "train_cifar10")
        models = _trained(config, law, given.images)
        found = {
            (name, steps, seed): _checked(model, law, config, steps, seed, given.samples)
            for name, model in models.items()
            for steps in config.eval.steps
            for seed in config.eval.seeds
        }
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_table(law, found))
    return 0


def _trained(config: CifarConfig, law: Bars, count: int) -> dict[str, Any]:
    from di4c_lm.core.cache import Cache
    from di4c_lm.data.images.images import Split
    from di4c_lm.domains.domain import Interrupted, cache_dir
    from di4c_lm.domains.pixels.domain import DOMAIN, PixelData
    from di4c_lm.runs import recipe
    from di4c_lm.training.distributed import init_distributed, set_threads

    world = init_distributed(config.run.device)
    set_threads(config.run.threads)
    images = law.images(count, config.train.seed)
    data = PixelData(images=Split(images, images), flip=config.data.flip)
    try:
        teacher = recipe.find_teacher(DOMAIN, config, data, world, Cache(cache_dir(config.run), world))
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


def _checked(model: Any, law: Bars, config: CifarConfig, steps: int, seed: int, count: int) -> ExactCheck:
    drawn_ND, _ = model.sample(
        count, steps, seed=seed, batch_size=config.eval.batch_size, **sampler_of(config.sampler, steps=steps)
    )
    return check_samples(law.index(drawn_ND.numpy()), law.law(), seed=seed)


def _table(law: Bars, found: dict[tuple[str, int, int], ExactCheck]) -> str:
    exact = law.law()
    product = total_variation(product_of_marginals(exact, law.enumerate()), exact)
    lines = [
        f"{law}: {law.num_images} images; the product of the marginals is {product:.3f} away",
        f"{'model':8} {'steps':>5} {'seed':>4} {'variation':>9} {'exact':>7} {'95 %':>7} {'p':>6} {'excess nats':>11}",
    ]
    for (name, steps, seed), one in found.items():
        lines.append(
            f"{name:8} {steps:5} {seed:4} {one.observed:9.4f} {one.floor:7.4f} {one.floor_high:7.4f} {one.p_value:6.3f} "
            f"{one.excess_nats:11.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

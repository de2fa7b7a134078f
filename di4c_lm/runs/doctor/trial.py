"""A few real updates of a run, timed."""

import time
from typing import Any

import torch

from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.runs.recipe import batches_of, make_objective, new_student, random_teacher
from di4c_lm.training.distributed import World, set_threads, sum_over_ranks
from di4c_lm.training.engine import Engine
from di4c_lm.training.loop import update


def try_out(config: TextSettings, world: World, steps: int) -> dict[str, Any]:
    """Seconds an update, those of 1,000, tokens/s, and this rank's peak of memory (GiB), from `steps` updates after a first one.

    On the run's own corpus and objective. A teacher that the run would train first is a random one of its shape. All ranks call it.
    Raises what the run would raise.
    """
    from di4c_lm.networks.base import block_matrices
    from di4c_lm.runs.bench.measure import PeakMemory

    set_threads(config.run.threads)
    data = DOMAIN.data(config, world, config.run.cache)
    teacher = None
    if config.objective.needs_teacher:
        pretrained = config.teacher.kind == "pretrained" and config.teacher.path
        teacher = DOMAIN.read(pretrained, config, data) if pretrained else random_teacher(DOMAIN, config, data)
    student = new_student(DOMAIN, config, data, teacher)
    student.denoiser.activation_checkpointing = config.train.activation_checkpointing
    batches = batches_of(config, data.source(config.train.seed), world)
    engine = Engine(
        make_objective(config, student, teacher, world),
        train=config.train,
        optim=config.optim,
        zero=config.zero,
        world=world,
        is_latent=student.denoiser.learns_apart,
        matrices=block_matrices(student.denoiser),
    )
    peak = PeakMemory(world.device)
    tokens, started = 0, 0.0
    for number in range(steps + 1):
        if number == 1:
            _wait(world)
            started = time.perf_counter()
        taken = update(engine, batches, config.optim.lr, lambda: 0, lambda what: None).tokens
        tokens += taken if number else 0
    _wait(world)
    seconds = (time.perf_counter() - started) / steps
    memory = peak.peak()
    engine.close()
    return {
        "steps": steps,
        "ranks": world.size,
        "seconds_per_step": seconds,
        "seconds_per_1000_steps": 1000 * seconds,
        "tokens_per_s": tokens / (seconds * steps),
        "peak_memory": memory,
    }


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    sum_over_ranks(torch.zeros((), device=world.device))

"""The training loop. It trains the Di4C student, and the MDLM teacher before it: it knows only an objective and batches."""

import logging
import math
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from di4c_lm.core.files import write_json
from di4c_lm.core.terminal import RunError
from di4c_lm.training.distributed import (
    Watchdog,
    gather_objects,
    init_distributed,
    is_main,
    sum_over_ranks,
    world_size,
)
from di4c_lm.training.ema import Ema
from di4c_lm.training.engine import Engine
from di4c_lm.training.metric_logger import MetricLogger
from di4c_lm.training.run_state import Checkpoint, Progress, Stateful
from di4c_lm.training.settings import OptimConfig, TensorboardConfig, TrainConfig, WandbConfig, ZeroConfig

logger = logging.getLogger(__name__)
_ASKED = (int(signal.SIGTERM), int(signal.SIGINT))  # requests to save and leave
_IDLE_STEPS = 50  # without any loss, after which a user is told


class NonFiniteError(RunError):
    """`train.max_bad_steps` steps in a row had a loss or a gradient that was not finite."""


@runtime_checkable
class Batches(Stateful, Protocol):
    """An endless stream of this rank's micro batches, `train.micro_batch_size` sequences each, whose position can be saved."""

    def __next__(self) -> Any:
        """A dataclass with `x` (B, D), `sample_id` (B) and `epoch` (B)."""
        ...


@runtime_checkable
class Adaptive(Stateful, Protocol):
    """What an objective learns besides weights, the same on all ranks: the `adaptive` of an objective, where it is not None."""

    def adapt(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Take in what this update's batches said. All ranks call it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training leaves: on rank 0 of a finished run the student's full float32 `state_dict`, averaged and, if asked for, raw."""

    progress: Progress
    raw: dict[str, Tensor] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step: `values` are means over the global batch, the same on all ranks."""

    values: dict[str, float]
    applied: bool
    signal: int
    sequences: int
    tokens: int
    samples: list[dict[str, Any]]  # of this rank: the ids of each micro batch, with its loss


class _Signals:
    """Takes SIGTERM and SIGINT as a request to leave after this step. A second SIGINT interrupts at once.

    (A launcher sends SIGTERM to one rank after another, and after a SIGINT too: `update` lets the ranks agree.)
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in _ASKED:
            self._previous[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = self.received or number


def train(
    objective: nn.Module,
    batches: Batches,
    *,
    train: TrainConfig,
    optim: OptimConfig,
    zero: ZeroConfig,
    run_dir: Path,
    wandb: WandbConfig | None = None,
    tensorboard: TensorboardConfig | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    is_latent: Callable[[str], bool] | None = None,
    matrices: Collection[str] = (),
    label: str = "train",
    settings: dict[str, Any] | None = None,
    optimizer_from: Path | None = None,
    gather_raw: bool = False,
) -> Trained:
    """Train `objective.student` for `train.steps` updates, or go on with the run in `run_dir` (`train.resume`). All ranks call it.

    `objective(batch)` returns the loss, a mean over the examples, and detached scalar metrics; see `Engine` for what else it
    promises. Leaves `metrics.jsonl` and `checkpoints/` in `run_dir`. On SIGTERM or SIGINT the step is finished and saved, and
    `progress.signal` tells: a script should then exit with 128 + that number. A run that does not resume begins with the optimiser's
    moments of the one in `optimizer_from`, where that is given. `gather_raw`: the raw weights are wanted beside the average.

    Errors: `ValueError` as `Checkpoint.resume` and `Engine` say; `NonFiniteError` after `train.max_bad_steps` bad steps in a
    row, with the last one's sample ids in `bad_batch.json`; `CheckpointError` where a checkpoint cannot be saved. If a rank dies or hangs,
    the others name it within `train.rank_timeout_s` seconds and end their processes (`Watchdog`).
    """
    world = init_distributed(device)
    with _Signals() as signals, Watchdog(train.rank_timeout_s) as watchdog:
        engine = Engine(
            objective, train=train, optim=optim, zero=zero, world=world, is_latent=is_latent, matrices=matrices
        )
        ema = Ema(engine.partition, optim.ema_decay)
        progress, idle = Progress(), 0
        adaptive: Adaptive | None = getattr(objective, "adaptive", None)
        checkpoint = Checkpoint(
            run_dir / "checkpoints",
            partition=engine.partition,
            engine=engine,
            ema=ema,
            batches=batches,
            progress=progress,
            adaptive=adaptive,
            keep=train.keep_checkpoints,
        )
        watchdog.beat("the search for a checkpoint")
        if not checkpoint.resume(train.resume) and optimizer_from is not None:
            checkpoint.adopt_optimizer(optimizer_from / "checkpoints")
        metric_logger = MetricLogger(
            run_dir,
            step=progress.step,
            total_steps=train.steps,
            log_every=train.log_every,
            wandb=wandb,
            tensorboard=tensorboard,
            label=label,
            settings=settings,
        )
        with metric_logger:
            while progress.step < train.steps and not progress.signal:
                lr = optim.learning_rate(progress.step, train.steps)
                step = update(engine, batches, lr, lambda: signals.received, _beat_in(watchdog, progress.step + 1))
                if step.applied:
                    ema.update()
                if adaptive is not None:
                    adaptive.adapt(sum_over_ranks)
                advance(progress, step)
                idle = idle + 1 if step.values["loss"] == 0 else 0
                if idle == min(_IDLE_STEPS, train.steps):
                    logger.warning(
                        "the loss was exactly 0 in %d steps in a row: nothing is learned. What the objective asks for (its "
                        "teacher steps are very short, perhaps) is there from the start",
                        idle,
                    )
                metric_logger.record(progress.step, step.tokens, {**step.values, "lr": lr, "skipped": progress.skipped})
                if progress.bad_in_a_row >= patience(train, last=progress.step == train.steps):
                    give_up(run_dir, progress, step)
                if (
                    progress.signal
                    or progress.step == train.steps
                    or (train.save_every and progress.step % train.save_every == 0)
                ):
                    watchdog.beat(f"saving after step {progress.step}")
                    checkpoint.save()
        watchdog.beat("the gathering of the weights")
        if progress.signal:
            logger.warning("stopped by %s after step %d, saved", signal.Signals(progress.signal).name, progress.step)
            raw, average = {}, {}
        else:
            raw = engine.gather() if gather_raw else {}
            average = engine.complete(ema.gather())
        engine.close()
    return Trained(progress=progress, raw=raw, ema=average)


def _beat_in(watchdog: Watchdog, step: int) -> Callable[[str], None]:
    return lambda what: watchdog.beat(f"{what} of step {step}")


def update(
    engine: Engine, batches: Batches, lr: float, received: Callable[[], int], beat: Callable[[str], None]
) -> Step:
    """One optimiser step over as many micro batches as the engine accumulates.

    `received()`: the signal this rank got, or 0. `beat(what)` is told what comes next.
    """
    totals: dict[str, Tensor] = {}
    samples, sequences, tokens, micro_steps = [], 0, 0, 0
    at_boundary = False
    applied = False
    while not at_boundary:
        beat("the data")
        batch = next(batches)
        at_boundary = engine.is_boundary
        beat("the forward pass")
        loss, metrics = engine.forward(batch)
        beat("the backward pass")
        engine.backward(loss)
        beat("the update")
        applied = engine.step(lr)
        for name, value in {"loss": loss.detach(), **metrics}.items():
            totals[name] = totals.get(name, 0.0) + value.to(torch.float64)
        samples.append({"sample_id": batch.sample_id, "epoch": batch.epoch, "loss": loss.detach()})
        sequences += len(batch.x)
        tokens += batch.x.numel()
        micro_steps += 1
    beat("the sum over the ranks")
    names = sorted(totals)
    local = torch.stack([totals[name].reshape(()) for name in names])
    shared = sum_over_ranks(torch.cat([local, local.new_tensor([received() == number for number in _ASKED])])).tolist()
    values = {
        name: total / (micro_steps * world_size()) for name, total in zip(names, shared[: len(names)], strict=True)
    }
    asked = [number for number, ranks in zip(_ASKED, shared[-len(_ASKED) :], strict=True) if ranks]
    return Step(
        values={**values, "grad_norm": engine.grad_norm},
        applied=applied,
        signal=asked[0] if asked else 0,
        sequences=sequences * world_size(),
        tokens=tokens * world_size(),
        samples=samples,
    )


def advance(progress: Progress, step: Step) -> None:
    """Count `step`."""
    progress.step += 1
    progress.sequences += step.sequences
    progress.tokens += step.tokens
    progress.skipped += not step.applied
    progress.bad_in_a_row = 0 if step.applied else progress.bad_in_a_row + 1
    progress.signal = step.signal
    if not step.applied:
        logger.warning(
            "step %d was skipped: loss %s, gradient norm %s",
            progress.step,
            step.values["loss"],
            step.values["grad_norm"],
        )


def patience(train: TrainConfig, *, last: bool) -> int:
    """How many steps in a row without a finite loss or gradient end a run; behind its last step, half of them all are too many too."""
    return min(train.max_bad_steps, math.ceil(train.steps / 2)) if last else train.max_bad_steps


def give_up(run_dir: Path, progress: Progress, step: Step) -> None:
    """End the run: save the sample ids of the last bad step, over all ranks, and raise `NonFiniteError`."""
    own = [{key: value.tolist() for key, value in sample.items()} for sample in step.samples]
    every = [sample for of_rank in gather_objects(own) for sample in of_rank]
    for sample in every:
        sample["loss"] = sample["loss"] if math.isfinite(sample["loss"]) else repr(sample["loss"])
    path = run_dir / "bad_batch.json"
    if is_main():
        write_json(path, {"step": progress.step, "micro_batches": every})
    raise NonFiniteError(
        f"{progress.bad_in_a_row} steps in a row, the last is {progress.step}, had a loss or gradient that is not finite "
        f"(loss {step.values['loss']}, gradient norm {step.values['grad_norm']}); their samples are in {path}"
    )

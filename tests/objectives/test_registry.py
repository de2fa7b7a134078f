"""The registry of objectives, and that a new one costs a file and a line: a toy, run through the training loop."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from di4c_lm.core.settings import build, fields, positive, section, setting, to_dict
from di4c_lm.data.batches import Batch, BatchStream, PackedSource
from di4c_lm.objectives.objective import Objective
from di4c_lm.objectives.registry import OBJECTIVES, OLD_KEYS
from di4c_lm.processes.process import Process
from tests.objectives.helpers import MASK, MASKED, text_batch, text_network


@section
class Toy:
    """The squared distance of every parameter from `aim`: all that a new objective is, but for its line in the registry."""

    aim: float = setting(0.5, "what every parameter is drawn to")
    weight: float = setting(1.0, "of the distance")

    needs_teacher: ClassVar[bool] = False
    takes_mixture: ClassVar[bool] = False
    antithetic: ClassVar[bool] = False
    num_distributions: ClassVar[int] = 0
    label: ClassVar[str] = "toy"

    def __post_init__(self) -> None:
        positive(self, "weight")

    def build(
        self, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> "ToyObjective":
        return ToyObjective(self, student, process, seed=seed, teacher=teacher)


class ToyObjective(Objective):
    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        used = self.student(batch.x, torch.ones(len(batch.x))).features.sum() * 0
        distance = torch.stack([(p - self.settings.aim).square().mean() for p in self.student.parameters()]).mean()
        return self.settings.weight * distance + used, {"distance": distance.detach()}


def train_toy(folder: Path) -> None:
    """The toy by its name and its keys, through the loop that trains every objective."""
    from di4c_lm.training.loop import train
    from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig

    OBJECTIVES["toy"] = Toy  # the line
    chosen = build(OBJECTIVES["toy"], {"aim": 0.25, "weight": "2"}, text=True)
    source = PackedSource(torch.arange(48).view(8, 6).remainder(MASK).numpy(), seed=0)
    train(
        chosen.build(text_network().float(), MASKED, seed=0),
        BatchStream(source, micro_batch_size=2, rank=0, world_size=1),
        train=TrainConfig(steps=8, micro_batch_size=2, log_every=1, save_every=0),
        optim=OptimConfig(lr=0.05, warmup_steps=0, ema_decay=0.0),
        zero=ZeroConfig(),
        run_dir=folder,
        device="cpu",
        label=chosen.label,
    )


def test_a_new_objective_trains(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and rows[-1]["distance"] < 0.5 * rows[0]["distance"]
    assert all(row["loss"] == pytest.approx(2 * row["distance"]) for row in rows)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_says_what_a_run_must_know_and_every_key_has_help(name: str) -> None:
    chosen = OBJECTIVES[name]()
    for attribute in ("needs_teacher", "takes_mixture", "antithetic"):
        assert isinstance(getattr(chosen, attribute), bool)
    assert isinstance(chosen.num_distributions, int) and chosen.label
    assert all(one.help for one in fields(type(chosen)).values())
    assert build(type(chosen), to_dict(chosen)) == chosen


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_steps_on_text(name: str) -> None:
    from tests.objectives.helpers import CODES

    chosen: Any = OBJECTIVES[name](**({"num_lambdas": 4} if OBJECTIVES[name].takes_mixture else {}))
    student = text_network(CODES if chosen.takes_mixture else None)
    of = chosen.build(student, MASKED, seed=0, teacher=text_network(None, 2) if chosen.needs_teacher else None)
    loss, metrics = of(text_batch(0, 1, 2))
    loss.backward()
    assert bool(loss.isfinite()) and all(not value.requires_grad for value in metrics.values())
    assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in student.parameters())
    assert {id(p) for _, p in of.external_parameters()} <= {id(p) for p in student.parameters()}


def test_former_keys_lead_to_keys_that_exist() -> None:
    """Each leads to a key of some objective, or says that it is gone."""
    known = {
        f"objective.{path}"
        for kind in OBJECTIVES.values()
        for name, one in fields(kind).items()
        for path in (name, *(f"{name}.{below}" for below in (fields(one.hint) if one.is_section else ())))
    }
    for old, new in OLD_KEYS.items():
        assert old not in known
        assert new in known or new.startswith("gone ("), (old, new)


if __name__ == "__main__":
    train_toy(Path(sys.argv[1]))

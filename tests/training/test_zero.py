"""What we read of DeepSpeed that it does not document: a version without it fails here, by name."""

from importlib.metadata import version
from typing import Any, Literal

import pytest
import torch
from torch import nn

from di4c_lm.training import engine as engines
from di4c_lm.training.distributed import init_distributed
from di4c_lm.training.engine import Engine, Optimizer
from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig
from di4c_lm.training.zero import masters_of

OF_STAGE = {
    1: ("single_partition_of_fp32_groups", "update_lp_params"),
    2: ("single_partition_of_fp32_groups", "update_lp_params"),
    3: (
        "fp32_partitioned_groups_flat",
        "fp16_partitioned_groups_flat",
        "grad_partitions_flat_buffer",
        "grad_position",
        "get_param_id",
        "_get_param_partition_rank",
        "finalize_gradient_accumulation_boundary",
        "checkpoint_event_prologue",
        "checkpoint_event_epilogue",
    ),
}


class Square(nn.Module):
    """A student of one matrix, and its objective."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(4, 4)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_keeps_what_we_read(stage: Literal[0, 1, 2, 3], monkeypatch: pytest.MonkeyPatch) -> None:
    wrappers: list[Any] = []

    def masters(wrapper: Any, trained: Any) -> list[torch.Tensor]:
        wrappers.append(wrapper)
        return masters_of(wrapper, trained)

    monkeypatch.setattr(engines, "masters_of", masters)
    world = init_distributed("cpu")
    engine = Engine(
        Square(),
        train=TrainConfig(steps=1, micro_batch_size=1),
        optim=OptimConfig(),
        zero=ZeroConfig(stage=stage),
        world=world,
    )
    wrapper = wrappers[0]
    lacking = [name for name in OF_STAGE.get(stage, ()) if not hasattr(wrapper, name)]
    assert not lacking, f"DeepSpeed {version('deepspeed')} at stage {stage} no longer has {', '.join(lacking)}"
    assert stage != 0 or isinstance(wrapper, Optimizer)
    held = sum(piece.numel for piece in engine.partition.pieces)
    assert held == 4 * 4 + 4  # every element of the student is found in a master
    found = torch.cat([piece.of(engine.partition.flats) for piece in engine.partition.pieces])
    assert bool(found.isfinite().all())
    engine.close()

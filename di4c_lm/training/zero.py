"""What DeepSpeed's ZeRO optimizers keep, and where they keep it. (They are handed in: DeepSpeed itself is imported by the engine alone.)"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW

from di4c_lm.training.partition import Piece


def is_stage_3(wrapper: Any) -> bool:
    """Whether the parameters themselves are partitioned."""
    return hasattr(wrapper, "fp32_partitioned_groups_flat")


def forget_gradients(wrapper: Any) -> None:
    """Zero ZeRO-3's gradient buffers: it would apply the last step's gradient again to a parameter that is unused in the next."""
    wrapper.grad_partitions_flat_buffer.zero_()
    for master in wrapper.fp32_partitioned_groups_flat:
        if master.grad is not None:
            master.grad.zero_()


def masters_of(wrapper: Any, trained: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """The float32 tensors that AdamW updates on this rank."""
    for attribute in (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # DeepSpeed's optimizer for bfloat16 at stages 0 and 1
    ):
        if hasattr(wrapper, attribute):
            return list(getattr(wrapper, attribute))
    assert isinstance(wrapper, AdamW), f"unknown DeepSpeed optimizer {type(wrapper).__name__}"
    return list(trained.values())


def pieces_of(wrapper: Any, trained: Mapping[str, nn.Parameter]) -> Iterator[Piece]:
    """Where each parameter lies in the tensors of `masters_of`."""
    named: Mapping[str, Any] = trained  # DeepSpeed hangs attributes of its own on parameters
    for i, (name, p) in enumerate(named.items()):
        if isinstance(wrapper, AdamW):
            yield Piece(name=name, start=0, numel=p.numel(), flat=i, offset=0)
        elif is_stage_3(wrapper):
            flat, offset, numel = wrapper.grad_position[wrapper.get_param_id(p)]
            start = numel * wrapper._get_param_partition_rank(p)
            held = min(numel, p.ds_numel - start)  # the last rank's end is padding
            if held > 0:
                yield Piece(name=name, start=start, numel=held, flat=flat, offset=offset)
        elif p._hp_mapping is not None:
            mapping = p._hp_mapping
            low, high = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
            yield Piece(name=name, start=low.start, numel=high.numel, flat=mapping.param_group_index, offset=high.start)


def refresh_weights(wrapper: Any, masters: list[Tensor]) -> None:
    """Carry the masters, just filled from a checkpoint, into the weights that the network computes with."""
    if is_stage_3(wrapper):
        wrapper.checkpoint_event_prologue()
        for low, master in zip(wrapper.fp16_partitioned_groups_flat, masters, strict=True):
            low.data.copy_(master.data)
        wrapper.checkpoint_event_epilogue()
    elif not isinstance(wrapper, AdamW):
        wrapper.update_lp_params()

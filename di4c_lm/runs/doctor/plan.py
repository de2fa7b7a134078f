"""What a run will take, computed from its settings: parameters, memory of a rank by ZeRO stage, disk. Bytes unless said otherwise."""

from typing import Any

import torch

from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.networks.base import attention_blocks
from di4c_lm.networks.decoder import Decoder, DecoderConfig
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.networks.lora import of_adapters
from di4c_lm.processes.denoiser import LOGITS_ON_CPU, LOGITS_ON_GPU
from di4c_lm.runs.recipe import mixture_of

GIB = 2**30
WAYS = ("0", "1", "2", "3", "1+offload", "2+offload", "3+offload")
# Of H numbers that a block keeps for a position: residuals, norms, q, k, v (rotated too), attention, MLP, gates.
_BLOCK_WIDTHS = 18
_CHUNK_COPIES = 3  # of a chunk's logits at once: themselves, their gradient, a product


def network_of(model: DitConfig | DecoderConfig) -> type[Any]:
    """The class of networks that has these settings."""
    return Decoder if isinstance(model, DecoderConfig) else DIT


def blank_student(config: TextSettings, model: DitConfig | DecoderConfig, num_states: int) -> Any:
    """The run's student without storage, over S = `num_states`."""
    with torch.device("meta"):
        return mixture_of(config).fresh(network_of(model), model, {"num_states": num_states})


def block_numbers(model: DitConfig | DecoderConfig) -> int:
    """Numbers that a block keeps for a position. A decoder's MLP has a width of its own, and keeps four of them."""
    if isinstance(model, DitConfig):
        return _BLOCK_WIDTHS * model.hidden_size
    heads = (2 * model.num_heads + 2 * model.num_kv_heads + model.num_kv_heads + model.num_heads) * model.head_dim
    return 8 * model.hidden_size + heads + 4 * model.mlp_size


def count(config: TextSettings, model: DitConfig | DecoderConfig, num_states: int) -> dict[str, int]:
    """Parameters of the teacher (0 without one), the student, its λ path, those trained and those frozen, over S = `num_states`."""
    student = blank_student(config, model, num_states)
    with torch.device("meta"):
        teacher = network_of(model)(model, num_states=num_states) if config.objective.needs_teacher else None
    tensors, own = student.tensors(), dict(student.named_parameters())
    whole, latent = (
        sum(p.numel() for n, p in own.items() if of(n)) for of in (lambda name: True, student.learns_apart)
    )
    trained = latent + of_adapters(getattr(student, "network", student), config.lora) if config.lora.rank else whole
    blocks = attention_blocks(teacher) if teacher is not None else []
    return {
        "teacher": sum(p.numel() for p in teacher.parameters()) if teacher is not None else 0,
        "teacher_blocks": sum(p.numel() for block in blocks for p in block.parameters()),
        "student": sum(tensor.numel() for name, tensor in tensors.items() if name != "rotary_emb.inv_freq"),
        "latent": latent,
        "trained": trained,
        "frozen": whole - latent if config.lora.rank else 0,
    }


def tokens_per_step(config: TextSettings, ranks: int) -> int:
    """Of an optimiser step over all ranks."""
    return config.train.micro_batch_size * config.train.gradient_accumulation * ranks * config.data.length


def state_memory(config: TextSettings, counts: dict[str, int], ranks: int, way: str) -> dict[str, int | float]:
    """What the state takes of a rank: weights, gradients, masters and AdamW's moments, EMA, teacher; and of it on the host by offload.

    float32 at stage 0 needs no masters beside the weights; bfloat16 runs as stage 1 there, and adds gradients up in float32.
    """
    stage, offload = int(way[0]), way.endswith("offload")
    wide = config.train.dtype == "float32"
    width, trained = (4 if wide else 2), counts["trained"]
    stage = 1 if stage == 0 and not wide else stage
    share = trained / ranks if stage else trained
    gone = counts["teacher_blocks"] * (1 - 1 / ranks) if config.zero.teacher == "partitioned" else 0
    parts = {
        "weights": width * (trained + counts["frozen"]) / (ranks if stage == 3 else 1),
        "gradients": width * (share if stage >= 2 else trained) + (0 if wide else 4 * share),
        "optimizer": 8 * share + (4 * share if stage else 0),
        "ema": 4 * share,
        "teacher": width * (counts["teacher"] - gone),
    }
    on_host = parts["optimizer"] + parts["ema"] + (0 if wide else 4 * share)
    return {**parts, "on_host": on_host if offload else 0.0}


def activation_memory(
    config: TextSettings, model: DitConfig | DecoderConfig, num_states: int, *, on_gpu: bool
) -> dict[str, int | float]:
    """What a micro batch takes: O(B L D H) of the network's activations, O(B D S) of distributions, and one chunk of logits of L rows."""
    B, D, S, H = config.train.micro_batch_size, config.data.length, num_states, model.hidden_size
    student = blank_student(config, model, num_states)
    L = student.num_components(getattr(config.objective, "num_lambdas", 1))
    block, rows_of_blocks = block_numbers(model), student.rows_by_block(L)
    per_position = sum(rows * block for rows in rows_of_blocks)
    if config.train.activation_checkpointing:  # the inputs of all blocks, and one block whole
        per_position = sum(rows * H for rows in rows_of_blocks) + max(rows_of_blocks) * block
    per_position, L = per_position + student.kept_beside, student.num_calls(L)
    width = 4 if config.train.dtype == "float32" else 2
    chunk = config.objective.chunk_rows or max(1, (LOGITS_ON_GPU if on_gpu else LOGITS_ON_CPU) // S)
    return {
        "network": width * B * D * (per_position + 2 * L * H),
        "distributions": 4.0 * config.objective.num_distributions * B * D * S,
        "logits": 4.0 * _CHUNK_COPIES * min(chunk, B * D * L) * S,
    }


def disk_needed(config: TextSettings, counts: dict[str, int]) -> float:
    """Checkpoints (masters, two moments, EMA in float32; one more than are kept, while the next is written) and the exported student."""
    return 16.0 * counts["trained"] * (config.train.keep_checkpoints + 1) + 4.0 * counts["student"]


def memory_table(
    config: TextSettings, counts: dict[str, int], activations: dict[str, int | float], ranks: int
) -> dict[str, dict[str, Any]]:
    """GiB of a rank by ZeRO stage, with and without offload: the parts, what lies on the host of them, and the sum."""
    table = {}
    for way in WAYS:
        state = state_memory(config, counts, ranks, way)
        on_host = state.pop("on_host")
        parts = {**state, "activations": sum(activations.values())}
        table[way] = {
            name: value / GIB for name, value in {**parts, "on_host": on_host, "total": sum(parts.values())}.items()
        }
    return table

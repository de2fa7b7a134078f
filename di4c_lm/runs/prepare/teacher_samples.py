"""Write what a teacher samples in many steps, once, into a folder of shards: the x_0 of a student that is made without data.

    di4c prepare teacher-samples teacher=<run, folder, file or hub name> out=<folder> num_samples=20000 steps=256
    di4c train teacher=<the same> data=shards data.path=<folder> objective.source=teacher evaluator=smollm2

Interrupted, it resumes when it is started again with the same arguments; more samples are made by a larger num_samples in another folder.
--help lists the keys.
"""

import functools
from pathlib import Path
from typing import ClassVar, Literal

from jaxtyping import Int64
from torch import Tensor

from di4c_lm.checkpoints.load import read_checkpoint
from di4c_lm.core.cache import key_of
from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.core.settings import at_least, check, section, setting, to_dict
from di4c_lm.core.terminal import progress_bar
from di4c_lm.data.records.shards import Index, row_dtype
from di4c_lm.data.records.writer import write_shard, writing
from di4c_lm.data.text.packing import token_id
from di4c_lm.data.text.prepare import TEACHER, TOKENIZER, VALIDATION, write_held_out
from di4c_lm.data.text.tokenizers import save_tokenizer
from di4c_lm.domains.load import load
from di4c_lm.domains.text.model import TextModel
from di4c_lm.measure.settings import device_of
from di4c_lm.runs.command import run_command
from di4c_lm.runs.sampling import Sampling
from di4c_lm.samplers.trajectory import name_of

_SEEDS_APART = 10**6  # from one shard to the next
_SHAPING = ("steps", "num_samples", "validation_share", "shard_rows", "seed")


@section
class Settings(Sampling):
    """A teacher's own samples as shards of text: `teacher` and `out` are needed."""

    OLD_KEYS: ClassVar[dict[str, str]] = {"model": "teacher"}

    teacher: str = setting(
        "", "a run's folder, one that save_pretrained wrote, a hub name, or with `tokenizer` any checkpoint"
    )
    tokenizer: str | None = setting(None, "of a checkpoint that comes without: a folder, file or hub name")
    weights: Literal["ema", "raw"] = setting("ema", "of a checkpoint that holds both")
    out: str = setting("", "folder of shards to write")
    steps: int = setting(256, "network calls a sample, or what the sampler makes of them")
    num_samples: int = setting(2000, "in all; the prompts are taken in turn")
    validation_share: float = setting(0.05, "share of the samples that is kept for validation")
    prompts_file: str | None = setting(None, "one prompt a line, with which samples begin; null: none")
    batch_size: int = setting(64, "samples at once")
    shard_rows: int = setting(512, "samples a file; at most so many are lost when the command is killed")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "that computes")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "batch_size", "shard_rows")
        at_least(self, 2, "num_samples")
        share = self.validation_share
        check(0 < share < 1, "validation_share", share, "in (0, 1)")
        check(not self.labels, "labels", self.labels, "left out for text")
        check(not self.hybrid_last, "hybrid_last", self.hybrid_last, "0: the teacher takes all steps")

    @property
    def num_held_out(self) -> int:
        """Samples that are kept for validation, the first ones."""
        return max(1, round(self.num_samples * self.validation_share))


def write_teacher_samples(settings: Settings) -> str:
    """Sample what is missing; what the folder holds, and how to train on it. Raises `ValueError` for a model that is not of text."""
    check(settings.teacher, "teacher", settings.teacher, "the teacher's checkpoint")
    check(settings.out, "out", settings.out, "a folder to write to")
    source, device = settings.teacher, device_of(settings.device)
    model = load(source, tokenizer=settings.tokenizer, weights=settings.weights, device=device)
    if not isinstance(model, TextModel):
        raise ValueError(f"teacher must be a model of text, got {source!r}")
    prompts = [""] if settings.prompts_file is None else _lines(Path(settings.prompts_file))
    folder, num_training = Path(settings.out), settings.num_samples - settings.num_held_out
    index = _index(settings, model, prompts)
    with writing(folder, index, settings.shard_rows) as writer:
        if writer.finished is None:
            save_tokenizer(model.tokenizer, folder / TOKENIZER)
            begun, starts = (writer.place or {"samples": 0})["samples"], range(0, num_training, settings.shard_rows)
            for start in progress_bar(starts, desc="teacher samples", unit="shard"):
                if start >= begun:
                    count = min(settings.shard_rows, num_training - start)
                    if writer.append(_sampled(settings, model, prompts, start, count).numpy()):
                        writer.commit({"samples": start + count})
            held_out_ND = _sampled(settings, model, prompts, num_training, settings.num_held_out)
            write_held_out(folder, model.tokenizer.batch_decode(held_out_ND, skip_special_tokens=True))
            counts = {"documents": num_training, "held_out": len(held_out_ND), "tokens": num_training * model.length}
            writer.close(counts, write_shard(folder, VALIDATION, held_out_ND.numpy().astype(index.dtype)))
    return (
        f"{folder}: {num_training:,} samples of {source}, and {settings.num_held_out:,} for validation\n"
        f"train on them: teacher={source} data=shards data.path={folder} data.length={model.length} "
        "objective.source=teacher evaluator=smollm2"
    )


def _sampled(
    settings: Settings, model: TextModel, prompts: list[str], first: int, count: int
) -> Int64[Tensor, "count D"]:
    """Samples `first` and on, which do not depend on those before."""
    seed = (
        settings.seed
        + _SEEDS_APART * (first // settings.shard_rows)
        + (first >= settings.num_samples - settings.num_held_out)
    )
    begin = model.begin([prompts[(first + n) % len(prompts)] for n in range(count)], 1, seed=seed)
    how = {**settings.how(model), "batch_size": settings.batch_size}
    return model.sample_tokens(count, settings.steps, seed=seed, x_init=begin, **how)[0].cpu()


def _index(settings: Settings, model: TextModel, prompts: list[str]) -> Index:
    teacher = read_checkpoint(settings.teacher, weights=settings.weights).fingerprint
    tokens = fingerprint(model.tokenizer)
    plain = {key: value for key, value in to_dict(settings).items() if key in _SHAPING}
    sampler = {"name": name_of(settings.sampler_for(model)), **to_dict(settings.sampler_for(model))}
    how = {**plain, **settings.decoding(), "grid": settings.grid, "sampler": sampler, "prompts": key_of(prompts)}
    return Index(
        kind="tokens",
        length=model.length,
        num_states=len(model.tokenizer),
        dtype=row_dtype(len(model.tokenizer)),
        coder=tokens,
        facts={"wrap": False, "eos_id": token_id(model.tokenizer.eos_token_id), TEACHER: teacher},
        made_by={"source": {"teacher": teacher}, "sampling": how, "tokenizer": tokens},
    )


def _lines(path: Path) -> list[str]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    check(lines, "prompts_file", str(path), "a file that holds a prompt")
    return lines


main = functools.partial(run_command, "di4c prepare teacher-samples", Settings, write_teacher_samples)

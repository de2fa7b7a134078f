"""Convert a checkpoint between the formats of MDLM and its relatives, of decoders, and of this project, without loss:

di4c convert source=<folder, .ckpt or hub name> target=<folder> to=di4c|mdlm|sdtt|bd3lm|radd|sedd|duo|llada|dream|llama
"""

import functools
from pathlib import Path
from typing import Literal

from di4c_lm.checkpoints import bd3lm, dream, duo, lightning, llada, llama, mdlm, own, radd, sdtt, sedd
from di4c_lm.checkpoints.load import read_checkpoint
from di4c_lm.core.settings import check, section, setting
from di4c_lm.runs.command import run_command

WRITERS = {
    "di4c": own.write,
    "mdlm": mdlm.write,
    "sdtt": sdtt.write,
    "bd3lm": bd3lm.write,
    "radd": radd.write,
    "sedd": sedd.write,
    "duo": duo.write,
    "llada": llada.write,
    "dream": dream.write,
    "llama": llama.write,
}
_LIGHTNING = ("mdlm", "sdtt", "duo")  # formats that are also written as Lightning files


@section
class Settings:
    """Convert a checkpoint between the formats of MDLM and its relatives, of decoders, and of this project."""

    source: str = setting("", "checkpoint to read: a folder, a .ckpt file, or a hub name (owner/model)")
    target: str = setting(
        "", "folder to write; with to=mdlm, to=sdtt or to=duo a name that ends in .ckpt is a Lightning file"
    )
    to: str = setting(
        "", "format to write: di4c, mdlm, sdtt, bd3lm, radd, sedd or duo; of a decoder di4c, llada, dream or llama"
    )
    weights: Literal["ema", "raw"] = setting(
        "ema", "which weights to read from a source that has both: the moving average or the raw ones"
    )
    revision: str | None = setting(None, "branch, tag or commit of a hub name")
    num_heads: int | None = setting(None, "attention heads, where the source does not say")
    length: int | None = setting(None, "tokens in a sequence, where the source does not say")
    mask_id: int | None = setting(None, "id of MASK, where neither the source nor its tokenizer says")
    shift: bool | None = setting(
        None, "of a decoder: the logits of a token stand one position before it; null: as its format has it"
    )


def convert(settings: Settings) -> None:
    """Read, write, and say what was written; a source that cannot be read leaves the target as it was."""
    check(settings.source, "source", settings.source, "a folder, a .ckpt file or a hub name")
    check(settings.target, "target", settings.target, "a folder to write, or a .ckpt file")
    check(settings.to in WRITERS, "to", settings.to, f"one of {', '.join(WRITERS)}")
    weights = read_checkpoint(
        settings.source,
        revision=settings.revision,
        weights=settings.weights,
        num_heads=settings.num_heads,
        length=settings.length,
        mask_id=settings.mask_id,
        shift=settings.shift,
    )
    target = Path(settings.target)
    write = lightning.write if target.suffix == ".ckpt" and settings.to in _LIGHTNING else WRITERS[settings.to]
    write(target, weights)
    size = sum(tensor.numel() for tensor in weights.tensors.values())
    print(f"{target}: {len(weights.tensors)} tensors, {size:,} values, in the format {settings.to}")


main = functools.partial(run_command, "di4c convert", Settings, convert)

"""Small folders of shards, written by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from di4c_lm.core.files import checksum
from di4c_lm.data.records.shards import Index, Shard, blake2b


def write_shards(folder: Path, parts: Sequence[np.ndarray], tokenizer: str = "none") -> Index:
    """`parts` (n, D) as shards, the first of them as the validation too, and their index."""

    def shard(name: str, part: np.ndarray) -> Shard:
        (folder / name).write_bytes(part.astype("<u2").tobytes())
        return Shard(name=name, rows=len(part), size=part.size * 2, blake2b=checksum(folder / name, blake2b))

    index = Index(
        kind="tokens",
        length=parts[0].shape[1],
        dtype="<u2",
        num_states=1 << 16,
        coder=tokenizer,
        facts={"wrap": False, "eos_id": 0},
        made_by={},
        counts={},
        train=tuple(shard(f"train_{n:05d}.bin", part) for n, part in enumerate(parts)),
        validation=shard("validation.bin", parts[0]),
    )
    index.write(folder)
    (folder / "validation.jsonl").write_text('{"text": "held out"}\n')
    return index

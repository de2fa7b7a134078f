"""`python kill_preparing.py <corpus> <out> <kills>`: prepare `out`, killed by SIGKILL `kills` times after another shard, then to the end.

Prints the number of shards that stood at each kill.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from di4c_lm.data.text import packing
from di4c_lm.data.text.corpus import open_documents
from di4c_lm.data.text.prepare import Layout, prepare
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import load_tokenizer

LAYOUT = Layout(length=64, wrap=True, shard_tokens=30_000, validation_share=0.1)


def start(write: Callable[[], object], killer: Callable[[], None] | None = None) -> int:
    """A child that writes; `killer` is a thread of it, which gets on as it does, however busy the machine is."""
    child = os.fork()
    if child == 0:
        try:
            if killer is not None:
                threading.Thread(target=killer, daemon=True).start()
            write()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def main(corpus: str, out: Path, kills: int) -> None:
    packing.BATCH_CHARACTERS = 20_000
    config = DataConfig(kind="files", path=corpus, streaming=True, tokenizer=str(Path(corpus) / "tokenizer"))
    tokenizer = load_tokenizer(config, (), out)

    def write() -> None:
        prepare(out, open_documents(config), tokenizer, LAYOUT, {"path": "the corpus"})

    rng, stood = random.Random(out.name), []
    for _ in range(kills):
        before, delay = len(list(out.glob("train_*.bin"))), rng.random() * 0.02

        def kill(before: int = before, delay: float = delay) -> None:
            while len(list(out.glob("train_*.bin"))) <= before:
                time.sleep(0.005)
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGKILL)

        _, status = os.waitpid(start(write, kill), 0)
        assert os.WIFSIGNALED(status), "it ended before it could be killed"
        stood.append(len(list(out.glob("train_*.bin"))))
    _, status = os.waitpid(start(write), 0)
    assert status == 0
    print(json.dumps(stood))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))

"""Makes the entry "things/key" of the cache `argv[1]` in steps that are kept; kills itself behind step `argv[2]`, if there is one."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

from di4c_lm.core.cache import WORK, Cache


def make(folder: Path) -> None:
    work = folder / WORK
    work.mkdir(exist_ok=True)
    for step in range(3):
        if (work / str(step)).exists():
            continue
        print("step", step, flush=True)
        (work / str(step)).touch()
        (folder / f"half_of_{os.getpid()}").touch()
        if sys.argv[2:] == [str(step)]:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
    (folder / f"half_of_{os.getpid()}").unlink(missing_ok=True)
    (folder / "whole").write_text("content")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(Cache(Path(sys.argv[1])).entry("things", "key", make))

"""One run on text, by the launcher that a user calls, judged by generative perplexity and entropy."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ablation.study import CONFIGS, Study

_LAUNCH = CONFIGS.parent / "launch" / "train_lm.py"


def run_text(study: Study, setting: str, seed: int, folder: Path, threads: int) -> list[dict[str, Any]]:
    """Train as `launch/train_lm.py` with the setting's words in `folder`; the rows of its closing report.

    Teacher and evaluator are cached where the run caches them. Raises `RuntimeError` with the end of the log where the run fails.
    """
    place = [f"run.dir={folder}", f"run.threads={threads}"]
    command = [sys.executable, str(_LAUNCH), *study.words(setting, seed), *place]
    log = folder / "log.txt"
    with log.open("w") as out:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{setting}, seed {seed}: exit status {done.returncode}\n{log.read_text()[-2000:]}")
    rows = json.loads((folder / "report" / "gen_ppl.json").read_text())["rows"]
    return [
        {"model": row["model"], "steps": row["steps"] or 0, "gen_ppl": row["gen_ppl"], "entropy": row["entropy"]}
        for row in rows
    ]

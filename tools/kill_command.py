"""Kills a small `launch/train_lm.py` anywhere in its whole work, starts it again, and compares its report with an unbroken run's:

    python tools/kill_command.py kills=30 [jobs=2]       SIGKILL at random moments, each followed by the same command
    python tools/kill_command.py kills=0 together=8      so many commands within a second, on one cache, with four seeds

The work is that of the first command: corpus, tokenizer, teacher and its export, student, evaluator, report. Each kill has a fresh folder
and a fresh cache. Commands at once have folders of their own; after them one command is started twice in one folder, where the second
must be refused by name. A line for each; the last is `N of M as unbroken`. Exit status 1 if any is not.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from di4c_lm.core.compose import parse
from di4c_lm.core.settings import at_least, section, setting

ROOT = Path(__file__).resolve().parents[1]
WORDS = [
    "model.hidden_size=32",
    "model.num_blocks=2",
    "model.num_heads=2",
    "model.cond_dim=16",
    "data.length=32",
    "data.vocab_size=512",
    "teacher.pretrain.steps=60",
    "teacher.pretrain.batch_size=8",
    "train.steps=30",
    "train.micro_batch_size=4",
    "train.save_every=5",
    "mixture.codebook_size=16",
    "evaluator.hidden_size=32",
    "evaluator.num_blocks=1",
    "evaluator.num_heads=2",
    "evaluator.pretrain.steps=40",
    "evaluator.pretrain.batch_size=8",
    "eval.steps=[1,2,4]",
    "eval.num_samples=32",
    "eval.bootstrap=50",
    "run.device=cpu",
    "run.threads=1",
]
SEEDS = 4
LINGER_S = 2.0  # seconds that a run may go on behind the line at which it is to be killed
ATTEMPT_S = 900.0  # seconds that a command may take


@section
class Settings:
    """Kills a small first command anywhere in its work, or runs several at once, and compares the reports with an unbroken run's."""

    kills: int = setting(30, "each of a run of its own")
    together: int = setting(0, "commands that are started within a second, on one cache")
    jobs: int = setting(1, "runs at the same time, of those that are killed")
    seed: int = setting(0, "of the moments")
    dir: str = setting("", "where the runs live; absent: a temporary folder")

    def __post_init__(self) -> None:
        at_least(self, 0, "kills", "together", "seed")
        at_least(self, 1, "jobs")


def start(folder: Path, name: str, cache: Path, seed: int) -> "subprocess.Popen[bytes]":
    """The command, in a process group of its own; it writes to `<folder>/<name>.log`."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*WORDS, f"train.seed={seed}", f"run.dir={folder / name}", f"run.cache_dir={cache}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / f"{name}.log").open("ab") as log:
        command = [sys.executable, str(ROOT / "launch" / "train_lm.py"), *words]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def outcome(folder: Path) -> list[dict[str, object]] | None:
    """The rows of a run's report, without what the clock says; None where there is no report."""
    path = folder / "report" / "gen_ppl.json"
    if not path.is_file():
        return None
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def unbroken(folder: Path, seed: int) -> list[dict[str, object]]:
    """The rows of a run that nobody kills."""
    if start(folder, f"unbroken_{seed}", folder / f"cache_{seed}", seed).wait(ATTEMPT_S):
        raise SystemExit((folder / f"unbroken_{seed}.log").read_text(encoding="utf-8")[-3000:])
    rows = outcome(folder / f"unbroken_{seed}")
    assert rows
    return rows


def killed(folder: Path, number: int, moment: float, expected: list[dict[str, object]]) -> bool:
    """Kill a run where it has said the share `moment` of what a whole one says before its table, or a little later; start it again."""
    name, cache = f"killed_{number}", folder / f"killed_{number}.cache"
    lines = (folder / "unbroken_0.log").read_text(encoding="utf-8").splitlines()
    whole = next(index for index, line in enumerate(lines) if line.startswith("report: "))
    process = start(folder, name, cache, 0)

    def said() -> list[str]:
        return (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()

    while process.poll() is None and len(said()) < moment * whole:
        time.sleep(0.01)
    time.sleep(random.Random(number).uniform(0, LINGER_S))
    with contextlib.suppress(ProcessLookupError):  # it is through
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    log = said()
    status = start(folder, name, cache, 0).wait(ATTEMPT_S)
    same = status == 0 and outcome(folder / name) == expected
    print(f"{'as unbroken' if same else 'DIFFERENT'}: killed behind {log[-1] if log else 'the start'!r}", flush=True)
    return same


def together(folder: Path, count: int, expected: list[list[dict[str, object]]]) -> int:
    """Start so many commands at once on one cache; how many ended with the rows of their seed."""
    processes = [start(folder, f"together_{n}", folder / "together.cache", n % SEEDS) for n in range(count)]
    right = 0
    for number, process in enumerate(processes):
        seed, status = number % SEEDS, process.wait(ATTEMPT_S)
        same = status == 0 and outcome(folder / f"together_{number}") == expected[seed]
        right += same
        print(f"{'as unbroken' if same else 'DIFFERENT'}: command {number}, seed {seed}, status {status}", flush=True)
    return right


def twice(folder: Path, expected: list[dict[str, object]]) -> bool:
    """Start one command twice: one must be refused by the name of the folder, the other end as ever."""
    first = start(folder, "twice", folder / "twice.cache", 0)
    second = start(folder, "twice", folder / "twice.cache", 0)
    statuses = sorted((first.wait(ATTEMPT_S), second.wait(ATTEMPT_S)))
    log = (folder / "twice.log").read_text(encoding="utf-8", errors="replace")
    same = statuses == [0, 2] and f"training {folder / 'twice'}" in log and outcome(folder / "twice") == expected
    print(f"{'as unbroken' if same else 'DIFFERENT'}: one command twice, statuses {statuses}", flush=True)
    return same


def trial(folder: Path, settings: Settings) -> tuple[int, int]:
    """How many ended as unbroken, and how many there were."""
    expected, rng = unbroken(folder, 0), random.Random(settings.seed)
    moments = [rng.random() for _ in range(settings.kills)]
    with ThreadPoolExecutor(settings.jobs) as pool:
        found = list(pool.map(lambda n: killed(folder, n, moments[n], expected), range(len(moments))))
    right, of = sum(found), len(found)
    if settings.together:
        others = [unbroken(folder, seed) for seed in range(1, SEEDS)]
        right += together(folder, settings.together, [expected, *others]) + twice(folder, expected)
        of += settings.together + 1
    return right, of


def main(argv: Sequence[str]) -> int:
    """Run the trial and print; the exit status."""
    settings = parse(Settings, argv, program="python tools/kill_command.py")
    with tempfile.TemporaryDirectory() as temporary:
        right, of = trial(Path(settings.dir or temporary).resolve(), settings)
    print(f"{right} of {of} as unbroken")
    return 0 if right == of else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

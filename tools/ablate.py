"""Which settings make a better student: a study of settings by seeds, each run in a process of its own.

    python tools/ablate.py study=markov seeds=[0,1,2] [jobs=2] [settings=[...]] [equal_time=true] [--json]

A study is a file of `configs/study/` or the path of one's own. Runs are kept under `out`, and those that are there already are not made
anew: a study that was cut goes on, and a setting added later costs its own runs alone. The outcome, means over seeds with 95 %
intervals, goes to the terminal, to rows.json and to study.png. `--json` runs the study's recipe alone and prints its rows as one object
on the last line.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.outcome import bars, measures_of, plot, table
from ablation.study import SECONDS, Study, load_study

from di4c_lm.core.compose import parse
from di4c_lm.core.settings import Ints, check, section, to_dict
from di4c_lm.core.terminal import bad_input_ends, fail

_APART = "--run"
_LIKE_TIME = 0.1  # of the logarithm of a ratio of times
_TWICE = ((1, 2), (2, 4), (4, 8), (8, 16), (16, 16))  # a student at K steps against the teacher at K'


@section
class Settings:
    """Which settings make a better student: a study of settings by seeds, each run in a process of its own.

    study                a file of configs/study/, or the path of a .yaml file
    seeds                of training, data order and samples
    settings             names of the study's settings, [] for all
    jobs                 runs side by side
    threads              CPU threads a run, 0 for the cores shared out among the jobs
    equal_time           run the settings that cost another time than the recipe once more, with as many updates as its time allows
    out                  where runs are kept, null for outputs/ablate/<study>
    """

    study: str = "markov"
    seeds: Ints = (0, 1, 2)
    settings: list[str] | None = None
    jobs: int = 1
    threads: int = 0
    equal_time: bool = False
    out: str | None = None

    def __post_init__(self) -> None:
        check(self.jobs >= 1, "jobs", self.jobs, "a value of at least 1")
        check(self.threads >= 0, "threads", self.threads, "a value of at least 0")
        check(len(self.seeds) > 0 and min(self.seeds) >= 0, "seeds", self.seeds, "a list of numbers of at least 0")


def main(argv: list[str]) -> int:
    """Run what is missing and show the outcome; bad input ends with exit status 2, a failed run with 1."""
    if argv[:1] == [_APART]:
        return run_here(*argv[1:])
    as_json, words = "--json" in argv, [word for word in argv if word != "--json"]
    settings = parse(Settings, words, program="python tools/ablate.py")
    with bad_input_ends():
        study = load_study(settings.study)
    chosen = list(settings.settings or ([study.recipe] if as_json else study.settings))
    for name in chosen:
        if name not in study.settings:
            fail(f"settings: {name!r} is impossible: allowed are {', '.join(study.settings)}")
    if settings.equal_time and (not study.source or study.recipe not in chosen):
        fail("equal_time=true is impossible: allowed is false, without a source or where settings lack the recipe")
    out = Path(settings.out or Path("outputs") / "ablate" / study.name)
    rows = run_all(study, settings, [Job(name) for name in chosen], out)
    if settings.equal_time:
        rows += run_all(study, settings, in_equal_time(study, settings, chosen, out), out)
        rows = _once(rows)
    (out / "rows.json").write_text(json.dumps(rows, indent=1))
    plot(rows, out / "study.png", f"{study.name}: {len(settings.seeds)} seed(s), 95 % intervals over seeds")
    for measure in measures_of(rows):
        print(table(rows, measure), end="\n\n")
        print("\n".join(bars(rows, study.recipe if study.recipe in chosen else chosen[0], measure, _TWICE)), end="\n\n")
    print(out / "study.png")
    if as_json:
        print(json.dumps({"rows": [{key: value for key, value in row.items() if key != "setting"} for row in rows]}))
    return 0


@dataclass(frozen=True)
class Job:
    """A setting, with its own number of updates or with `steps`; without a setting the teacher."""

    setting: str | None = None
    steps: int = 0

    def of(self, study: Study) -> tuple[Study, str | None]:
        """A study that has this setting, and its name there."""
        return study.timed(self.setting, self.steps) if self.setting and self.steps else (study, self.setting)


def in_equal_time(study: Study, settings: Settings, chosen: Sequence[str], out: Path) -> list[Job]:
    """The chosen settings with the updates that take the recipe's time, but for those whose own take it within a tenth, and chains."""

    def seconds(name: str) -> float:
        folders = [folder_of(out, study, name, seed) for seed in settings.seeds]
        return sum(json.loads((folder / SECONDS).read_text()) for folder in folders)

    jobs = []
    for name in chosen:
        config, share = study.config(name, 0), seconds(study.recipe) / seconds(name)
        if abs(math.log(share)) > _LIKE_TIME and not config.rounds:
            jobs.append(Job(name, max(1, round(config.train.steps * share))))
    return jobs


def run_all(study: Study, settings: Settings, chosen: Sequence[Job], out: Path) -> list[dict[str, Any]]:
    """All runs, those at hand read; teachers first, since students share them. Ends the program with status 1 where a run fails."""
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.jobs)

    def run(job: tuple[Job, str | None, int, Path]) -> list[dict[str, Any]]:
        wanted, name, seed, folder = job
        done = folder / "rows.json"
        if not done.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            label = f"{name or 'teacher'}, seed {seed}"
            print(f"{label}: begun", file=sys.stderr, flush=True)
            with (folder / "ablate.log").open("w") as log:
                command = [
                    sys.executable,
                    __file__,
                    _APART,
                    settings.study,
                    wanted.setting or "",
                    str(wanted.steps),
                    str(seed),
                    str(out),
                    str(threads),
                ]
                environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                status = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
            if status:
                raise RuntimeError(f"{label}: exit status {status}, see {folder / 'ablate.log'}")
            print(f"{label}: done", file=sys.stderr, flush=True)
        setting = {} if name is None else {"setting": name}
        return [{**row, **setting, "seed": seed} for row in json.loads(done.read_text())]

    def jobs(wanted: Sequence[Job]) -> list[tuple[Job, str | None, int, Path]]:
        named = [(one, *one.of(study)) for one in wanted]
        return [
            (one, name, seed, folder_of(out, its_study, name, seed))
            for seed in settings.seeds
            for one, its_study, name in named
        ]

    teachers, students = jobs([Job()] if study.source else []), jobs(chosen)
    try:
        with ThreadPoolExecutor(settings.jobs) as pool:
            found = [row for some in (teachers, students) for rows in pool.map(run, some) for row in rows]
    except RuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from error
    return _once(found)


def _once(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs on text report their teacher and the data each; one of each seed is kept."""
    seen, kept = set(), []
    for row in rows:
        key = (row["model"], row["steps"], row["seed"], row.get("setting") if row["model"] == "student" else None)
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return kept


def folder_of(out: Path, study: Study, setting: str | None, seed: int) -> Path:
    """Where a run lives: under its name and the hash of all that shapes it, so that a changed study does not take old runs for its own."""
    config = to_dict(study.config(setting, seed))
    if setting is None:
        config = {key: config[key] for key in ("model", "teacher", "eval")}
    shaping = json.dumps([study.source, study.sequences, config], sort_keys=True)
    digits = hashlib.sha256(shaping.encode()).hexdigest()[:8]
    plain = "".join(letter if letter.isalnum() else "-" for letter in setting or "teacher")
    return out / f"{plain}-seed-{seed}-{digits}"


def run_here(name: str, wanted: str, steps: str, seed: str, out: str, threads: str) -> int:
    """One run in this process; its rows go to rows.json of its folder."""
    (study, setting), number = Job(wanted or None, int(steps)).of(load_study(name)), int(seed)
    folder = folder_of(Path(out), study, setting, number)
    if study.source:
        from ablation.exact import run_student, run_teacher

        teacher = folder_of(Path(out), study, None, number)
        rows = (
            run_student(study, setting, number, folder, teacher, int(threads))
            if setting
            else run_teacher(study, number, folder, int(threads))
        )
    else:
        from ablation.text import run_text

        assert setting is not None
        rows = run_text(study, setting, number, folder, int(threads))
    work = folder / "rows.json.part"
    work.write_text(json.dumps(rows))
    work.rename(folder / "rows.json")
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # Native threads of the collectives' libraries may outlive the interpreter: leave without waiting for them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

"""Which settings make a better student: a study of settings by seeds, each run in a process of its own.

    di4c ablate study=markov seeds=[0,1,2] [jobs=2] [settings=[...]] [equal_time=true] [--json]

A study is a file of `configs/study/` or the path of one's own. Runs are kept under `out`, and those that are there already are not made
anew: an interrupted study resumes, and a setting added later costs its own runs alone. The outcome, means over seeds with 95 % intervals,
goes to the terminal, to rows.json and to study.png. `--json` runs the study's recipe alone and prints its rows as one object on the last
line.
"""

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

from di4c_lm.core.cache import key_of
from di4c_lm.core.files import write_json
from di4c_lm.core.settings import Ints, at_least, check, section, setting, to_dict
from di4c_lm.runs.ablate.outcome import bars, measures_of, plot, table
from di4c_lm.runs.ablate.study import Study, load_study
from di4c_lm.runs.command import run_command

_APART = "--run"
_LIKE_TIME = 0.1  # of the logarithm of a ratio of times
_TWICE = ((1, 2), (2, 4), (4, 8), (8, 16), (16, 16))  # a student at K steps against the teacher at K'
Rows = list[dict[str, Any]]


@section
class Settings:
    """Which settings make a better student: a study of settings by seeds, each run in a process of its own."""

    study: str = setting("markov", "a file of configs/study/, or the path of a .yaml file")
    seeds: Ints = setting((0, 1, 2), "random seeds of training, data order and samples: a run for each")
    settings: tuple[str, ...] = setting((), "names of the study's settings to run; []: all")
    jobs: int = setting(1, "runs side by side")
    threads: int = setting(0, "CPU threads per run; 0: the cores divided among the jobs")
    equal_time: bool = setting(
        False,
        "repeat each setting whose training time differs from the recipe's, with as many updates as take the recipe's time",
    )
    out: str | None = setting(None, "folder that keeps the runs; null: outputs/ablate/<study>")
    json: bool = setting(
        False, "run the study's recipe alone where no settings are named, and print its rows as one object at the end"
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "jobs")
        at_least(self, 0, "threads")
        check(len(self.seeds) > 0 and min(self.seeds) >= 0, "seeds", self.seeds, "a list of numbers of at least 0")


@dataclass(frozen=True)
class Job:
    """A setting of a study, or, without one, the teacher that all share, and a seed."""

    study: Study
    setting: str | None
    seed: int
    out: Path
    steps: int = 0  # updates in place of the setting's own

    def timed(self) -> "Job":
        """The job under the name that says its number of updates."""
        if not self.steps or self.setting is None:
            return self
        study, name = self.study.timed(self.setting, self.steps)
        return Job(study, name, self.seed, self.out)

    @property
    def label(self) -> str:
        """What it is called."""
        return f"{self.setting or 'teacher'}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Under its name and the hash of all that shapes it, so that a changed study does not take old runs for its own."""
        config = to_dict(self.study.config(self.setting, self.seed))
        if self.setting is None:
            config = {key: config[key] for key in ("model", "teacher", "eval")}
        digits = key_of(self.study.source, self.study.sequences, config)[:8]
        plain = "".join(letter if letter.isalnum() else "-" for letter in self.setting or "teacher")
        return self.out / f"{plain}-seed-{self.seed}-{digits}"


def main(argv: Sequence[str]) -> int:
    """Run what is missing and show the outcome; bad input ends with exit status 2, a failed run with 1."""
    if argv[:1] == [_APART]:
        return run_here(*argv[1:])
    return run_command("di4c ablate", Settings, compare, argv)


def compare(settings: Settings) -> None:
    """Run what is missing, and show the outcome. Raises `ValueError` for a study or settings that there are not."""
    study = load_study(settings.study)
    chosen = list(settings.settings or ([study.recipe] if settings.json else study.settings))
    for name in chosen:
        check(name in study.settings, "settings", name, f"among {', '.join(study.settings)}")
    possible = study.source and study.recipe in chosen
    reason = "false without a source or where settings lack the recipe"
    check(possible or not settings.equal_time, "equal_time", settings.equal_time, reason)
    out = Path(settings.out or Path("outputs") / "ablate" / study.name)
    jobs = [Job(study, name, seed, out) for seed in settings.seeds for name in chosen]
    rows = run_all([Job(study, None, seed, out) for seed in settings.seeds] if study.source else [], settings)
    rows += run_all(jobs, settings)
    if settings.equal_time:
        rows += run_all(in_equal_time(jobs, study.recipe), settings)
    rows = _once(rows)
    write_json(out / "rows.json", rows)
    plot(rows, out / "study.png", f"{study.name}: {len(settings.seeds)} seed(s), 95 % intervals over seeds")
    for measure in measures_of(rows):
        print(table(rows, measure), end="\n\n")
        print("\n".join(bars(rows, study.recipe if study.recipe in chosen else chosen[0], measure, _TWICE)), end="\n\n")
    print(out / "study.png")
    if settings.json:
        print(json.dumps({"rows": [{key: value for key, value in row.items() if key != "setting"} for row in rows]}))


def in_equal_time(jobs: Sequence[Job], recipe: str) -> list[Job]:
    """The jobs with the updates that take the recipe's time, but for those whose own take it within a tenth, and rounds."""
    from di4c_lm.runs.ablate.run import SECONDS

    def seconds(setting: str | None) -> float:
        return sum(json.loads((job.folder / SECONDS).read_text()) for job in jobs if job.setting == setting)

    found = []
    for job in jobs:
        config, share = job.study.config(job.setting, 0), seconds(recipe) / seconds(job.setting)
        if abs(math.log(share)) > _LIKE_TIME and not config.rounds:
            found.append(Job(job.study, job.setting, job.seed, job.out, max(1, round(config.train.steps * share))))
    return found


def run_all(jobs: Sequence[Job], settings: Settings) -> Rows:
    """The rows of all jobs, those at hand read. Ends the program with status 1 where a run fails."""
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.jobs)

    def run(asked: Job, job: Job, folder: Path) -> Rows:
        if not (folder / "rows.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            print(f"{job.label}: begun", file=sys.stderr, flush=True)
            told = (settings.study, asked.setting or "", asked.steps, asked.seed, asked.out, threads)
            command = [sys.executable, "-m", "di4c_lm", "ablate", _APART, *map(str, told)]
            with (folder / "ablate.log").open("w") as log:
                environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                status = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
            if status:
                raise RuntimeError(f"{job.label}: exit status {status}, see {folder / 'ablate.log'}")
            print(f"{job.label}: done", file=sys.stderr, flush=True)
        of = {"seed": job.seed} if job.setting is None else {"setting": job.setting, "seed": job.seed}
        return [{**row, **of} for row in json.loads((folder / "rows.json").read_text())]

    try:
        with ThreadPoolExecutor(settings.jobs) as pool:
            named = [job.timed() for job in jobs]
            found = pool.map(run, jobs, named, [job.folder for job in named])
            return [row for rows in found for row in rows]
    except RuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from error


def run_here(name: str, setting: str, steps: str, seed: str, out: str, threads: str) -> int:
    """One run in this process; its rows go to rows.json of its folder."""
    from di4c_lm.runs.ablate.run import run_student, run_teacher, run_text

    job = Job(load_study(name), setting or None, int(seed), Path(out), int(steps)).timed()
    study, folder = job.study, job.folder
    if job.setting is None:
        rows = run_teacher(study, job.seed, folder, int(threads))
    elif study.source:
        teacher = Job(study, None, job.seed, job.out).folder
        rows = run_student(study, job.setting, job.seed, folder, teacher, int(threads))
    else:
        rows = run_text(study, job.setting, job.seed, folder, int(threads))
    write_json(folder / "rows.json", rows)
    return 0


def _once(rows: Rows) -> Rows:
    """Runs on text report their teacher and the data each; one of each seed is kept."""
    kept = {}
    for row in rows:
        setting = row.get("setting") if row["model"] == "student" else None
        kept.setdefault((row["model"], row["steps"], row["seed"], setting), row)
    return list(kept.values())

"""Which settings make a better student: a study of settings by seeds, each run in a process of its own.

    di4c ablate study=markov seeds=[0,1,2] [jobs=2] [settings=[...]] [equal_time=true] [--json]
    di4c ablate study=exact_characters data=<jsonl> seeds=[0] [settings=[...]] [--json]
    di4c ablate study=tinystories teacher=<folder> data=<jsonl> validation=<jsonl> evaluator=smollm2 seeds=[0,1,2]

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from di4c_lm.core.cache import key_of
from di4c_lm.core.files import write_json
from di4c_lm.core.settings import Ints, Texts, at_least, build, check, section, setting, to_dict
from di4c_lm.runs.ablate.outcome import bars, beaten, measures_of, plot, table
from di4c_lm.runs.ablate.study import GIVEN, TEACHERS, Study, load_study
from di4c_lm.runs.command import run_command

_APART = "--run"
_LIKE_TIME = 0.1  # of the logarithm of a ratio of times
_TWICE = ((1, 2), (2, 4), (4, 8), (8, 16), (16, 16))  # a student at K steps against the teacher at K'
_FOUR_TIMES = ((1, 4), (2, 8), (4, 16), (8, 32))
_REACH = ((1, 16), (2, 32), (4, 64), (8, 256))
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
    num_samples: int = setting(0, "samples of each model and number of steps; 0: as the study says")
    teacher: Texts | str = setting(
        (),
        "folder of the teacher, or a list of several, of a study that leaves it to you; of a study with a source exact, its own "
        "posterior marginals, or train",
    )
    data: Texts | str = setting(
        (),
        "files of the students' texts, and of the n-grams that they are measured beside; with a source of characters of the text "
        "that it counts, by default the built-in one",
    )
    validation: str = setting("", "file of texts that neither teachers nor students were trained on")
    evaluator: str = setting("", "smollm2, or folder or hub name of the language model that reads the samples")
    evaluator_download: bool = setting(False, "fetch the evaluator smollm2 into the cache where it is absent")

    def __post_init__(self) -> None:
        at_least(self, 1, "jobs")
        at_least(self, 0, "threads", "num_samples")
        check(self.num_samples != 1, "num_samples", 1, "0, or at least 2")
        check(len(self.seeds) > 0 and min(self.seeds) >= 0, "seeds", self.seeds, "a list of numbers of at least 0")

    @property
    def teachers(self) -> Texts:
        """The folders given."""
        if self.teacher in TEACHERS:
            return ()
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher

    def studied(self) -> Study:
        """The study, with what the command says of all its runs. Raises `ValueError` for a study that there is not."""
        paths = ",".join((self.data,) if isinstance(self.data, str) else self.data)
        kind = str(self.teacher) if self.teacher in TEACHERS else ""
        study = load_study(self.study, data=paths, teacher=kind)
        for key in GIVEN:
            said = getattr(self, key)
            of_source = {"teacher": bool(study.source) and not self.teachers, "data": study.counts_text}.get(key, False)
            ok = of_source or bool(said) == study.is_given
            check(ok, key, said, "given" if study.is_given else f"left out where study={self.study}")
        more = {"data": paths, "eval.skip": "true"} if study.is_given else {}
        return study.under(more | ({"eval.num_samples": self.num_samples} if self.num_samples else {}))


@dataclass(frozen=True)
class Job:
    """A setting of a study, or, without one, the teacher that all share, and a seed; of a given teacher its folder and what measures."""

    study: Study
    setting: str | None
    seed: int
    out: Path
    steps: int = 0  # updates in place of the setting's own
    teacher: str = ""
    measured_by: tuple[str, ...] = ()

    def timed(self) -> "Job":
        """The job under the name that says its number of updates."""
        if not self.steps or self.setting is None:
            return self
        study, name = self.study.timed(self.setting, self.steps)
        return replace(self, study=study, setting=name, steps=0)

    @property
    def label(self) -> str:
        """What it is called."""
        under = f" under {Path(self.teacher).name}" if self.teacher else ""
        return f"{self.setting or 'teacher'}{under}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Under its name and the hash of all that shapes it, so that a changed study does not take old runs for its own."""
        config = to_dict(self.study.config(self.setting, self.seed))
        facts: list[Any] = [self.study.teacher] if self.study.is_exact else []
        facts += [self.measured_by, config["data"], self.study.teacher_steps] if self.measured_by else []
        if self.setting is None:
            config = {key: config[key] for key in ("model", "teacher", "eval")}
        digits = key_of(self.study.source, self.study.sequences, config, *facts)[:8]
        plain = "".join(letter if letter.isalnum() else "-" for letter in self.setting or "teacher")
        return self.out / f"{plain}-seed-{self.seed}-{digits}"


def main(argv: Sequence[str]) -> int:
    """Run what is missing and show the outcome; bad input ends with exit status 2, a failed run with 1."""
    if argv[:1] == [_APART]:
        return run_here(argv[1])
    return run_command("di4c ablate", Settings, compare, argv)


def compare(settings: Settings) -> None:
    """Run what is missing, and show the outcome. Raises `ValueError` for a study or settings that there are not."""
    study = settings.studied()
    chosen = list(settings.settings or ([study.recipe] if settings.json else study.settings))
    for name in chosen:
        check(name in study.settings, "settings", name, f"among {', '.join(study.settings)}")
    possible = study.source and study.recipe in chosen
    reason = "false without a source or where settings lack the recipe"
    check(possible or not settings.equal_time, "equal_time", settings.equal_time, reason)
    out = Path(settings.out or Path("outputs") / "ablate" / study.name)
    if study.is_given:
        check_given(settings, chosen)
    alone = [None] if study.source or study.is_given else []
    rows = [row for name in [*alone, *chosen] for row in run_all(jobs_of(settings, study, name, out), settings)]
    jobs = [job for name in chosen for job in jobs_of(settings, study, name, out)]
    if settings.equal_time:
        rows += run_all(in_equal_time(jobs, study.recipe), settings)
    show(_once(rows), settings, study, study.recipe if study.recipe in chosen else chosen[0], out)


def jobs_of(settings: Settings, study: Study, name: str | None, out: Path) -> list[Job]:
    """A setting, or without one what all share, under every teacher with every seed."""
    how = (settings.validation, settings.evaluator) if study.is_given else ()
    return [
        Job(study.under({"teacher": teacher}) if teacher else study, name, seed, out, 0, teacher, how)
        for teacher in settings.teachers or ("",)
        for seed in settings.seeds
    ]


def check_given(settings: Settings, chosen: Sequence[str]) -> None:
    """Raise `ValueError` for teachers, texts and an evaluator that cannot be had, before anything is read; it names the key."""
    from di4c_lm.data.text.corpus import check_corpus
    from di4c_lm.domains.text.domain import DOMAIN
    from di4c_lm.measure.text.evaluator import check_evaluator

    study = settings.studied()
    check_evaluator(settings.evaluator, download=settings.evaluator_download)
    for teacher in settings.teachers:
        for name in chosen:
            config = study.under({"teacher": teacher}).config(name, settings.seeds[0])
            check_corpus(config.data)
            try:
                check_corpus(replace(config.data, path=settings.validation))
            except ValueError as error:
                raise ValueError(f"validation: {error}") from error
            DOMAIN.check_teacher(config)


def show(rows: Rows, settings: Settings, study: Study, setting: str, out: Path) -> None:
    """Tables, differences and a picture of the rows, on the terminal and in `out`; differences of `setting`."""
    write_json(out / "rows.json", rows)
    nats, rows = [row for row in rows if "nats" in row], [row for row in rows if "nats" not in row]
    spread = f"{len(settings.teachers)} teachers" if len(settings.teachers) > 1 else f"{len(settings.seeds)} seed(s)"
    plot(rows, out / "study.png", f"{study.name}: {spread}, 95 % intervals over them")
    pairs = _REACH if study.is_given else _FOUR_TIMES if study.is_exact else _TWICE
    for measure in measures_of(rows):
        print(table(rows, measure), end="\n\n")
        print("\n".join(bars(rows, setting, measure, pairs)), end="\n\n")
    if nats:
        print(table(nats, "nats", along="t"), end="\n\n")
    if apart := [row for row in nats if "worst_tv" in row]:
        print(table(apart, "worst_tv", along="t"), end="\n\n")
    if said := beaten(rows):
        print(said, end="\n\n")
    print(out / "study.png")
    if settings.json:
        print(json.dumps(as_object(rows, nats, study)))


def as_object(rows: Rows, nats: Rows, study: Study) -> dict[str, Rows]:
    """What `--json` prints: of a given or exact teacher's students `model` is the setting; of others student. Nats beside, where given."""
    if study.is_exact:
        named = [{**row, "model": row.get("setting", row["model"])} for row in rows if row["model"] != "data"]
        return {"rows": [{key: value for key, value in row.items() if key != "setting"} for row in named]}
    if not study.is_given:
        return {"rows": [{key: value for key, value in row.items() if key != "setting"} for row in rows]}
    of_row, of_nats = (
        ("model", "steps", "gen_ppl", "entropy", "seed", "teacher"),
        ("setting", "t", "nats", "marginal_kl", "worst_tv", "seed", "teacher"),
    )
    named = [{**row, "model": row.get("setting", row["model"])} for row in rows]
    return {
        "rows": [{key: row[key] for key in of_row if key in row} for row in named],
        "nats": [{key: row[key] for key in of_nats if key in row} for row in nats],
    }


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
            told = {"settings": to_dict(settings), "threads": threads, "out": str(asked.out)}
            told |= {key: getattr(asked, key) for key in ("setting", "seed", "steps", "teacher")}
            command = [sys.executable, "-m", "di4c_lm", "ablate", _APART, json.dumps(told)]
            with (folder / "ablate.log").open("w") as log:
                environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                status = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
            if status:
                raise RuntimeError(f"{job.label}: exit status {status}, see {folder / 'ablate.log'}")
            print(f"{job.label}: done", file=sys.stderr, flush=True)
        of = {"seed": job.seed} if job.setting is None else {"setting": job.setting, "seed": job.seed}
        of |= {"teacher": job.teacher} if len(settings.teachers) > 1 else {}
        return [{**row, **of} for row in json.loads((folder / "rows.json").read_text())]

    try:
        with ThreadPoolExecutor(settings.jobs) as pool:
            named = [job.timed() for job in jobs]
            found = pool.map(run, jobs, named, [job.folder for job in named])
            return [row for rows in found for row in rows]
    except RuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from error


def run_here(told: str) -> int:
    """One run in this process, as JSON says; its rows go to rows.json of its folder."""
    from di4c_lm.runs.ablate import run

    plain = json.loads(told)
    settings, threads = build(Settings, plain["settings"]), plain["threads"]
    study = settings.studied()
    (asked,) = [
        job
        for job in jobs_of(settings, study, plain["setting"], Path(plain["out"]))
        if (job.seed, job.teacher) == (plain["seed"], plain["teacher"])
    ]
    job = replace(asked, steps=plain["steps"]).timed()
    study, seed, folder = job.study, job.seed, job.folder
    if study.is_given:
        how = {
            "validation": settings.validation,
            "evaluator": settings.evaluator,
            "download": settings.evaluator_download,
        }
        rows = run.run_given(study, job.setting, seed, folder, threads, how)
    elif job.setting is None:
        rows = run.run_teacher(study, seed, folder, threads)
    elif study.source:
        rows = run.run_student(study, job.setting, seed, folder, replace(job, setting=None).folder, threads)
    else:
        rows = run.run_text(study, job.setting, seed, folder, threads)
    write_json(folder / "rows.json", rows)
    return 0


def _once(rows: Rows) -> Rows:
    """Runs on text report their teacher and the data each; one of each seed is kept."""
    kept = {}
    for row in rows:
        setting = row.get("setting") if row["model"] == "student" else None
        place = (
            row["model"],
            row.get("steps"),
            row.get("t"),
            row["seed"],
            row.get("teacher"),
            setting,
            row.get("operation"),
        )
        kept.setdefault(place, row)
    return list(kept.values())

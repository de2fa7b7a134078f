"""A chain of rounds from one config: each round a run of its own, which learns from the one before it."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence

from di4c_lm.core import cli
from di4c_lm.core.settings import kind_of
from di4c_lm.data.text.corpus import load_corpus
from di4c_lm.domains.text.model import PARTS, SETTINGS, STUDENT, STUDENT_RAW, load_run, write_parts
from di4c_lm.domains.text.report import trained_evaluator
from di4c_lm.domains.text.settings import Config, TeacherConfig
from di4c_lm.measure.text.report import gen_ppl_report
from di4c_lm.objectives.registry import OBJECTIVES
from di4c_lm.runs.text import needs_teacher, report_settings, run_text, write_settings
from di4c_lm.training.distributed import World, barrier, init_distributed

logger = logging.getLogger(__name__)


def run_chain(config: Config, rounds: Sequence[Config]) -> int:
    """Train `rounds` one after the other and report on all of them. All ranks call it. Returns the exit status: 128 + a signal, or 0.

    A round that is finished is passed over, one that was cut goes on. Its teacher is the student of the round before it, averaged or raw
    as its `teacher.weights` says, unless it names another. Raises as `run_text` does, and `ValueError` for a round that lives elsewhere
    than in the chain's folder, or was finished under other settings.
    """
    for number, one in enumerate(rounds, 1):
        if cli.run_dir(one) != cli.run_dir(config) / f"round_{number}":
            raise ValueError(
                f"rounds[{number - 1}]: run.dir={str(cli.run_dir(one))!r} is impossible: it follows the chain's"
            )
    world = init_distributed(config.run.device)
    base = cli.run_dir(config)
    if world.is_main:
        base.mkdir(parents=True, exist_ok=True)
        write_settings(base / SETTINGS, config)
    chain = [linked(config, rounds, index) for index in range(len(rounds))]
    for index, one in enumerate(chain):
        before = cli.run_dir(chain[index - 1]) if index else None
        name = names(chain)[index]
        if is_finished(one):
            logger.info("round %d of %d, %s: finished before", index + 1, len(chain), name)
            continue
        logger.info("round %d of %d: %s", index + 1, len(chain), name)
        status = run_text(
            one,
            export_raw=index + 1 < len(chain) and chain[index + 1].teacher.weights == "raw",
            optimizer_from=None if one.train.reset_optimizer else before,
        )
        if status:
            return status
    if world.is_main and not config.eval.skip:
        logger.info("report on %s", ", ".join(names(chain)))
        report_chain(config, chain, world)
    barrier()
    return 0


def names(rounds: Sequence[Config]) -> list[str]:
    """What the models of the rounds are called: by their objective, with a number where it comes more than once."""
    kinds = [kind_of(OBJECTIVES, one.objective) for one in rounds]
    return [
        kind if Counter(kinds)[kind] == 1 else f"{kind}-{kinds[: index + 1].count(kind)}"
        for index, kind in enumerate(kinds)
    ]


def linked(config: Config, rounds: Sequence[Config], index: int) -> Config:
    """Round `index` with its teacher: the round before it, unless it is the first, needs none or names its own."""
    one = rounds[index]
    own = any(key in ("teacher", "teacher.path", "teacher.kind") for key in config.rounds[index])
    if index == 0 or own or not needs_teacher(one):
        return one
    folder = cli.run_dir(rounds[index - 1]) / (STUDENT if one.teacher.weights == "ema" else STUDENT_RAW)
    teacher = TeacherConfig(kind="pretrained", path=str(folder), weights=one.teacher.weights)
    return dataclasses.replace(one, teacher=teacher)


def is_finished(one: Config) -> bool:
    """Whether the round's folder holds its student and its report. Raises `ValueError` where they were made under other settings."""
    import yaml

    folder = cli.run_dir(one)
    needed = [folder / STUDENT / "model.safetensors", folder / PARTS]
    needed += [] if one.eval.skip else [folder / "report" / "gen_ppl.json"]
    if not all(path.exists() for path in needed):
        return False
    made_by = cli.from_dict(yaml.safe_load((folder / SETTINGS).read_text()))
    if cli.run_hash(made_by) != cli.run_hash(one):
        raise ValueError(f"{folder} was finished under other settings, kept in its {SETTINGS}: choose another run.dir")
    return True


def report_chain(config: Config, chain: Sequence[Config], world: World) -> None:
    """Note the rounds' models in the chain's folder, and measure them beside each other; the table goes to the terminal."""
    base, last = cli.run_dir(config), load_run(cli.run_dir(chain[-1]))
    evaluator = last.evaluator
    if evaluator == "train":
        cache_dir = cli.cache_dir(config)
        evaluator = trained_evaluator(
            config, load_corpus(config.data, config.train.seed, cache_dir), cache_dir, str(world.device)
        )
    folders = {name: cli.run_dir(one) / STUDENT for name, one in zip(names(chain), chain, strict=True)}
    write_parts(base, teacher=None, evaluator=evaluator, validation=last.validation, rounds=folders)
    logger.info("%s", gen_ppl_report(load_run(base), report_settings(config)))

"""Distil a student, or a chain of them: of text, CIFAR-10's pixels or ImageNet's codes.

    di4c train [text|cifar10|imagenet] [--nproc <number>] [key=value ...]

Several processes share the work under DeepSpeed's launcher: as many as there are GPUs, or as `--nproc` says. A cluster's own launcher,
`deepspeed --hostfile`, starts `launch/train_lm.py` in place of it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from di4c_lm.core.terminal import RunError, errors_end, run_script
from di4c_lm.domains.domain import DOMAINS, find_domain
from di4c_lm.runs.command import launch_if_asked
from di4c_lm.runs.folder import compose_run, parse_run, run_dir


def main(argv: Sequence[str]) -> NoReturn:
    """Read the settings, run, and end the program."""
    name, words = (argv[0], argv[1:]) if argv[:1] and argv[0] in DOMAINS else ("text", argv)
    with errors_end():
        arguments = launch_if_asked(("train", name), words)
        domain = find_domain(name)
    settings, rounds = parse_run(domain, arguments, program=f"di4c train {name} [--nproc <number>]")
    from di4c_lm.runs.recipe import run
    from di4c_lm.training.distributed import shutdown

    run_script(lambda: run(domain, settings, rounds), shutdown)


def train(settings: Mapping[str, Any] | None = None, /, *, domain: str = "text", **more: Any) -> Path:
    """Distil a student in this process, and report on it.

    Examples:
        >>> given = {"train.steps": 2, "run.name": "short", "evaluator.path": "outputs/stories/evaluator"}
        >>> run = di4c_lm.train(given, data="stories.jsonl", teacher="outputs/stories/teacher")
        >>> print(run)
        outputs/short

    Args:
        settings: by key, as `di4c train <domain> --help` lists them.
        domain: text, cifar10 or imagenet.
        more: settings and presets whose keys have no dot, such as `recipe="di4c"`.

    Returns:
        The run's folder, as `di4c_lm.load` takes it. A finished run is not trained again.

    Raises:
        ValueError: a key that there is not, a value that does not fit, bad data or a bad teacher.
        RunError: what a run foresees and cannot go on from; also where a signal ended it.
        ConnectionError: a hub that does not answer.
    """
    from di4c_lm.runs.recipe import run

    chosen = find_domain(domain)
    composed, rounds = compose_run(chosen, [*(settings or {}).items(), *more.items()])
    status = run(chosen, composed, rounds)
    if status:
        raise RunError(f"interrupted by signal {status - 128}; the same call resumes it")
    return run_dir(chosen, composed)

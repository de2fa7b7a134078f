"""Distil a student, or a chain of them: of text, CIFAR-10's pixels or ImageNet's codes.

    di4c train [text|cifar10|imagenet] [--nproc <number>] [key=value ...]

Several processes share the work under DeepSpeed's launcher: as many as there are GPUs, or as `--nproc` says. A cluster's own launcher,
`deepspeed --hostfile`, starts `launch/train_lm.py` in place of it.
"""

from collections.abc import Sequence
from typing import NoReturn

from di4c_lm.core.terminal import errors_end, run_script
from di4c_lm.domains.domain import DOMAINS, find_domain
from di4c_lm.runs.command import launch_if_asked
from di4c_lm.runs.folder import parse_run


def main(argv: Sequence[str]) -> NoReturn:
    """Read the settings, run, and end the program."""
    name, words = (argv[0], argv[1:]) if argv[:1] and argv[0] in DOMAINS else ("text", argv)
    with errors_end():
        arguments = launch_if_asked(("train", name), words)
        domain = find_domain(name)
    settings, rounds = parse_run(domain, arguments, program=f"di4c train {name}")
    from di4c_lm.runs.recipe import run
    from di4c_lm.training.distributed import shutdown

    run_script(lambda: run(domain, settings, rounds), shutdown)

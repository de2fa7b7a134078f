"""What can be told of a run before anything is read or built: one list of checks, for a run and for `di4c doctor`."""

import os
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from di4c_lm.core.files import check_writable
from di4c_lm.core.terminal import message_of, not_installed
from di4c_lm.domains.domain import Domain
from di4c_lm.networks.base import use_flash
from di4c_lm.runs.folder import CHECKPOINTS, check_settings, run_dir
from di4c_lm.training.deepspeed_config import deepspeed_config
from di4c_lm.training.distributed import choose_device
from di4c_lm.training.metric_logger import check_tensorboard, check_wandb
from di4c_lm.training.run_state import check_resume

Check = Callable[[], object]  # raises `ValueError` or `OSError` for what is wrong


def checks(domain: Domain, settings: Any) -> Mapping[str, Check]:
    """Each check by what it looks at, those of the machine first and those that read most last.

    None writes anything, but that an evaluator may be fetched into the cache.
    """
    folder, attention = run_dir(domain, settings), getattr(settings.model, "attention", "auto")
    return {
        "eval.skip": lambda: check_installed(reports=not settings.eval.skip),
        "run.device": lambda: choose_device(settings.run.device, 0),
        "model.attention": lambda: attention != "flash" or use_flash(attention),
        "run.dir": lambda: check_folder(domain, settings, folder),
        "run.cache_dir": lambda: check_writable(settings.run.cache, "run.cache_dir"),
        "lora.rank": lambda: check_peft(settings.lora.rank),
        "zero.config": lambda: check_zero(settings),
        "wandb.mode": lambda: check_wandb(settings.wandb),
        "tensorboard.enabled": lambda: check_tensorboard(settings.tensorboard),
        **domain.checks(settings),
    }


def check_all(domain: Domain, settings: Any, skip: Collection[str] = ()) -> None:
    """Raise what the first check that fails raises, but for those of the keys to `skip`."""
    for key, check in checks(domain, settings).items():
        if key not in skip:
            check()


def faults(domain: Domain, settings: Any) -> list[str]:
    """What all checks that fail say."""
    found = []
    for check in checks(domain, settings).values():
        try:
            check()
        except (ValueError, OSError) as error:
            found.append(message_of(error))
    return found


def check_installed(*, reports: bool) -> None:
    """Raise `ValueError` for an absent module without which nothing is trained, or nothing reported; it names the extra."""
    for module in ("deepspeed", *(("matplotlib", "scipy", "sklearn") if reports else ())):
        if find_spec(module) is None:
            raise ValueError(not_installed(module))


def check_peft(rank: int) -> None:
    """Raise `ValueError` for adapters where there is no peft, or one that does not import."""
    if rank and find_spec("peft") is None:
        raise ValueError(not_installed("peft"))


def check_folder(domain: Domain, settings: Any, folder: Path) -> None:
    """Raise `ValueError` where a run of these settings cannot go on, or begin, in `folder`."""
    check_writable(folder, "run.dir" if settings.run.dir else "run.name")
    check_settings(domain, settings, folder)
    check_resume(folder / CHECKPOINTS, settings.train.resume)


def check_zero(settings: Any) -> None:
    """Raise `ValueError` for a file of DeepSpeed's settings that cannot be read, or contradicts those of the run."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    shape = {"world_size": ranks, "num_parameters": 2, "on_cpu": settings.run.device == "cpu"}
    deepspeed_config(settings.train, settings.optim, settings.zero, **shape)

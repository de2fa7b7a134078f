"""The command line of the image scripts: `key=value` words over a YAML file, by Hydra, into a checked dataclass of one domain."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from di4c_lm.core import cli
from di4c_lm.core.settings import to_dict
from di4c_lm.training.settings import RunConfig

T = TypeVar("T")


def parse(section: type[T], argv: Sequence[str], config_dir: Path, config_name: str, program: str) -> T:
    """A `section` from `config_dir/config_name.yaml` and the words. `--help` and errors as in `di4c_lm.core.cli.parse`."""
    import sys

    words = [word for word in argv if not word.startswith(cli.LAUNCHER_FLAGS)]
    try:
        if any(word in ("-h", "--help") for word in words):
            options = sorted(
                path.stem for path in (config_dir / "experiment").glob(f"{config_name.split('_')[-1]}_*.yaml")
            )
            usage = f"usage: deepspeed {program} [key=value ...]\n\n  experiment={'|'.join(options)}\n\nKeys and their values:\n"
            sys.stdout.write(usage + cli.key_table(to_dict(load(section, [], config_dir, config_name))))
            raise SystemExit(0)
        return load(section, words, config_dir, config_name)
    except ValueError as error:
        cli.fail(str(error))


def load(section: type[T], words: Sequence[str], config_dir: Path, config_name: str) -> T:
    """As `parse`, but raises `ValueError`."""
    overrides = [_override(word) for word in words]
    return from_dict(section, cli.compose_plain(to_dict(section()), words, overrides, config_dir, config_name))


def from_dict(section: type[T], plain: dict[str, Any]) -> T:
    """A `section` from nested plain values; `ValueError` names every key that is unknown, of a wrong type or impossible."""
    return cli.build(section, {"latent" if key == "lambda" else key: value for key, value in plain.items()})


def run_hash(config: Any) -> str:
    """Eight hex digits that stand for all settings but where a run lives, how it is watched and how it is judged."""
    plain = to_dict(config)
    for key in ("run", "wandb", "eval"):
        del plain[key]
    for key in ("save_every", "keep_checkpoints", "resume", "log_every"):
        plain["train"].pop(key)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def run_dir(config: Any) -> Path:
    """`run.dir`, else `outputs/<run.name>`, where an absent name is `<domain>-<hash of the settings>`."""
    run: RunConfig = config.run
    return Path(run.dir or Path("outputs") / (run.name or f"{config.domain}-{run_hash(config)}"))


def cache_dir(run: RunConfig) -> Path:
    """Where trained teachers are kept: `run.cache_dir`, else $DI4C_CACHE, else ~/.cache/di4c_lm."""
    return Path(run.cache_dir or os.environ.get("DI4C_CACHE") or Path.home() / ".cache" / "di4c_lm")


def write_settings(path: Path, config: Any) -> None:
    """The whole configuration as YAML."""
    import yaml

    assert dataclasses.is_dataclass(config)
    path.write_text(yaml.safe_dump(json.loads(json.dumps(to_dict(config))), sort_keys=False, allow_unicode=True))


def _override(word: str) -> str:
    if "=" not in word:
        raise ValueError(f"{word!r} is not of the form key=value; see --help")
    return f"+{word}" if word.startswith("objective=") else word  # no group of the files' defaults

"""The edge of the command line: `key=value` words over YAML files, by Hydra, into the checked dataclasses of `di4c_lm.config`."""

import dataclasses
import difflib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from di4c_lm.core import settings
from di4c_lm.core.settings import SettingError, to_dict
from di4c_lm.domains.text.settings import Config
from di4c_lm.objectives.registry import OBJECTIVES

T = TypeVar("T")
LAUNCHER_FLAGS = ("--local_rank", "--local-rank")
# A word such as teacher=<folder> that names no file of the group chooses this one, and the word becomes its path.
PATH_CHOICE = {"teacher": "pretrained", "data": "files"}


def run_script(run: Callable[[], int]) -> NoReturn:
    """Run a launch script's job and end the program with the status it returns, or with 2 and the message where input was bad."""
    from di4c_lm.training.distributed import shutdown

    log_to_terminal()
    try:
        status = run()
    except (ValueError, ConnectionError) as error:
        sys.stderr.write(f"error: {error}\n")
        status = 2
    finally:
        shutdown()
        logging.shutdown()
    # All is saved and closed. Native threads of the collectives' libraries may outlive the interpreter, and then abort a run that is over.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def fail(message: str) -> NoReturn:
    """End the program as bad input does: the message on stderr, exit status 2."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def parse(argv: Sequence[str], config_dir: Path, config_name: str, program: str) -> tuple[Config, list[Config]]:
    """The settings of a run from `config_dir/config_name.yaml` and words `key=value`, and those of its rounds, none if it is not a chain.

    `--help` prints every key with its default and ends; an unknown key, a wrong type or an impossible value ends with status 2, naming the
    key, the value and what is allowed.
    """
    words = [word for word in argv if not word.startswith(LAUNCHER_FLAGS)]
    if any(word in ("-h", "--help") for word in words):
        sys.stdout.write(_help(config_dir, config_name, program))
        raise SystemExit(0)
    try:
        config = load(words, config_dir, config_name)
        return config, load_rounds(config, words, config_dir, config_name)
    except ValueError as error:
        fail(str(error))


def load_rounds(config: Config, words: Sequence[str], config_dir: Path, config_name: str) -> list[Config]:
    """The settings of each of `config.rounds`: the run's own `words`, then those of the round. `ValueError` names the round.

    What a round does not say itself: it lives in `<run>/round_<n>`, its seed is the run's plus n - 1, its `objective.*` are those said in
    the last round of the same objective, and SDTT's `objective.round` counts the rounds of SDTT.
    """
    own = [word for word in words if word.partition("=")[0] != "rounds"]
    found: list[Config] = []
    last_said: dict[Any, dict[str, Any]] = {}
    num_sdtt = 0
    for number, said in enumerate(config.rounds, 1):
        said = {**last_said.get(said.get("objective"), {}), **said}
        last_said[said.get("objective")] = {
            key: value for key, value in said.items() if key.startswith("objective.") and key != "objective.round"
        }
        place = {"run.dir": str(run_dir(config) / f"round_{number}"), "train.seed": config.train.seed + number - 1}
        round_words = [*own, *(f"{key}={_hydra_value(key, value)}" for key, value in {**place, **said}.items())]
        try:
            plain: dict[str, Any] = {**to_dict(load(round_words, config_dir, config_name)), "rounds": []}
            if plain["objective"]["kind"] == "sdtt":
                num_sdtt = plain["objective"]["round"] if "objective.round" in said else num_sdtt + 1
                plain["objective"]["round"] = num_sdtt
            found.append(from_dict(plain))
        except ValueError as error:
            raise ValueError(f"rounds[{number - 1}]: {error}") from error
    return found


def load(words: Sequence[str], config_dir: Path, config_name: str) -> Config:
    """As `parse`, but raises `ValueError`."""
    overrides = [override for word in words for override in _override(word, config_dir)]
    return from_dict(compose_plain(to_dict(Config()), words, overrides, config_dir, config_name))


def compose_plain(
    known: dict[str, Any], words: Sequence[str], overrides: Sequence[str], config_dir: Path, config_name: str
) -> dict[str, Any]:
    """The nested plain values of `config_dir/config_name.yaml` under `overrides`, on top of `known`. Raises `ValueError`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    choosing = {**known, "objective": {"kind": known["objective"]["kind"]}}
    # First which kind of objective it is, then all keys of that kind alone: `every_key` is the first of the files' defaults.
    not_objective = [word for word in overrides if not word.lstrip("+~").startswith("objective.")]
    kinds_said = [word.partition("=")[2] for word in overrides if word.startswith("objective.kind=")]
    try:
        with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
            ConfigStore.instance().store(name="every_key", node=choosing)
            kind = compose(config_name, [*not_objective]).objective.kind
            for said in (kind, *kinds_said):
                if said not in OBJECTIVES or said != kind:
                    allowed = f"{', '.join(OBJECTIVES)}, chosen by objective=<kind>"
                    raise ValueError(f"objective.kind={said!r} is impossible: allowed are {allowed}")
            known["objective"] = {"kind": kind, **to_dict(OBJECTIVES[kind]())}
            ConfigStore.instance().store(name="every_key", node=known)
            composed = compose(config_name, [*overrides])
        plain = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, words, config_dir, known)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def from_dict(plain: dict[str, Any]) -> Config:
    """A `Config` from nested plain values; `ValueError` names every key that is unknown, of a wrong type or impossible."""
    renamed = {"latent" if key == "lambda" else key: value for key, value in plain.items()}
    return build(Config, renamed)


def build(section: type[T], plain: dict[str, Any]) -> T:
    """A checked dataclass from plain values; `ValueError` as in `from_dict`."""
    try:
        return TypeAdapter(section).validate_json(json.dumps(plain))  # JSON: sections and lists are read strictly
    except ValidationError as error:
        raise ValueError("\n".join(_describe(section, one) for one in error.errors())) from error


def parse_words(section: type[T], argv: Sequence[str], program: str) -> T:
    """A flat section from words `key=value`, for scripts without a YAML file; `--help` and errors as in `parse`."""
    if any(word in ("-h", "--help") for word in argv):
        lines = [
            f"  {name}={settings.show(one.default)}".ljust(36) + one.help
            for name, one in settings.fields(section).items()
        ]
        usage = f"usage: python {program} [key=value ...]\n\n{(section.__doc__ or '').strip()}\n\n"
        sys.stdout.write(usage + "\n".join(lines) + "\n")
        raise SystemExit(0)
    for word in argv:
        if "=" not in word:
            fail(f"{word!r} is not of the form key=value; allowed keys: {', '.join(_names(section))}")
    try:
        return settings.build(section, {word.partition("=")[0]: word.partition("=")[2] for word in argv}, text=True)
    except ValueError as error:
        fail(str(error))


def measure(section: type[T], argv: Sequence[str], program: str, report: Callable[[T], str]) -> int:
    """Run a script of `eval/`: the words make the settings, the settings a report, whose table is printed.

    Returns 0; bad input ends with exit status 2.
    """
    chosen = parse_words(section, argv, program)
    log_to_terminal()
    try:
        sys.stdout.write(f"{report(chosen)}\n")
    except (ValueError, ConnectionError) as error:
        fail(str(error))
    return 0


def run_hash(config: Config) -> str:
    """Eight hex digits that stand for the settings which make a run what it is: all but where it lives and how it is watched."""
    plain = to_dict(config)
    for key in ("run", "wandb", "eval"):
        del plain[key]
    for key in ("save_every", "keep_checkpoints", "resume", "log_every", "rank_timeout_s"):
        del plain["train"][key]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def run_dir(config: Config) -> Path:
    """`run.dir`, else `outputs/<run.name>`, where an absent name is `lm-<hash of the settings>`."""
    return Path(config.run.dir or Path("outputs") / (config.run.name or f"lm-{run_hash(config)}"))


def cache_dir(config: Config) -> Path:
    """Where trained teachers and judges are kept: `run.cache_dir`, else $DI4C_CACHE, else ~/.cache/di4c_lm."""
    return Path(config.run.cache_dir or os.environ.get("DI4C_CACHE") or Path.home() / ".cache" / "di4c_lm")


def log_to_terminal() -> None:
    """Messages of this rank to stderr, past progress bars: all of them on rank 0, errors alone elsewhere."""
    from tqdm import tqdm

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(self.format(record), file=sys.stderr)

    main_rank = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if main_rank else logging.ERROR, format="%(message)s", handlers=[Handler()])
    for noisy in ("httpx", "deepspeed", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _override(word: str, config_dir: Path) -> list[str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"{word!r} is not of the form key=value; see --help")
    if key in PATH_CHOICE and value and not (config_dir / key / f"{value}.yaml").exists():
        quoted = json.dumps(value, ensure_ascii=False)
        return [f"{key}={PATH_CHOICE[key]}", f"{key}.path={quoted}"]
    return [word]


def _hydra_value(key: str, value: Any) -> str:
    """A value as a word of Hydra's grammar, which reads JSON but for quoted keys."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_hydra_value(name, one)}" for name, one in value.items()) + "}"
    is_name = isinstance(value, str) and (value.isidentifier() or key in PATH_CHOICE)
    return value if is_name else json.dumps(value, ensure_ascii=False)


def explain(error: Exception, words: Sequence[str], config_dir: Path, known: dict[str, Any]) -> str:
    """What was wrong with the words of a command line, as Hydra's `error` has it: the key, the value, and what is allowed."""
    for word in words:
        key, _, value = word.partition("=")
        bare = key.lstrip("+~")
        options = sorted(path.stem for path in (config_dir / bare).glob("*.yaml"))
        if options and value not in options:
            return f"{bare}={value!r} is impossible: allowed are {', '.join(options)}"
        if not options and bare not in _leaves(known):
            return f"unknown key {bare!r} (value {value!r}){_suggest(bare, list(_leaves(known)))}"
    return str(error).splitlines()[0]


def _suggest(key: str, known: list[str]) -> str:
    section = key.rpartition(".")[0]
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    allowed = [name for name in known if section and name.rpartition(".")[0] == section]
    allowed = allowed or sorted({name.split(".")[0] for name in known})
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{hint}; allowed are {', '.join(allowed)}"


def _leaves(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in plain.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def _describe(section: type, error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join("lambda" if part == "latent" and not i else part for i, part in enumerate(path))
    value, message = error["input"], error["msg"]
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {key!r} (value {value!r}); allowed are {', '.join(_names(_owner(section, path[:-1])))}"
    if error["type"] == "value_error":
        said = error["ctx"]["error"]
        return str(said.within(key) if isinstance(said, SettingError) else said)
    return f"{key}={value!r} is impossible: {message[0].lower()}{message[1:]}"


def _names(section: type) -> list[str]:
    return [field.name for field in dataclasses.fields(section)]


def _owner(section: type, path: Sequence[str]) -> type:
    for part in path:
        hint = get_type_hints(section).get(part, section)
        candidates = [hint, *get_args(hint)] if get_origin(hint) else [hint]
        section = next((c for c in candidates if dataclasses.is_dataclass(c)), section)  # pyright: ignore[reportAssignmentType]
    return section


def _help(config_dir: Path, config_name: str, program: str) -> str:
    groups = {
        path.name: sorted(p.stem for p in path.glob("*.yaml")) for path in sorted(config_dir.iterdir()) if path.is_dir()
    }
    lines = [f"usage: deepspeed {program} [key=value ...]", "", "Groups, each a file of configs/<group>/:"]
    lines += [f"  {name}={'|'.join(options)}" for name, options in groups.items() if options]
    lines += [
        "  teacher=<folder|file|hub name> and data=<file|folder> choose one of yours",
        "",
        "Keys and their values:",
    ]
    return "\n".join(lines) + "\n" + key_table(to_dict(load([], config_dir, config_name)))


def key_table(plain: dict[str, Any]) -> str:
    """A line for each key with its value, as `--help` prints them."""
    return "".join(f"  {key}={json.dumps(value, ensure_ascii=False)}\n" for key, value in _leaves(plain).items())

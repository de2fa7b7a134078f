"""A page on this machine on which models are sampled side by side, step by step.

di4c demo [model=<run, folder or hub name>] [models=[<name>=<path>,...]] [port=8421]     --help lists the keys
"""

import asyncio
import errno
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from di4c_lm.core.compose import as_said
from di4c_lm.core.settings import Texts, check, fields, section, setting, to_dict
from di4c_lm.domains.domain import PARTS, FinishedRun, find_run
from di4c_lm.domains.load import load
from di4c_lm.domains.text.model import TextModel
from di4c_lm.measure.settings import device_of
from di4c_lm.runs.command import run_command
from di4c_lm.runs.sampling import Sampling
from di4c_lm.samplers.grids import GRIDS, MEASURED
from di4c_lm.samplers.registry import SAMPLERS
from di4c_lm.training.distributed import free_port

_HOST = "127.0.0.1"
_SHOWN = (
    "steps",
    "num_samples",
    "grid",
    "temperature",
    "top_p",
    "seed",
    "labels",
    "guidance",
)  # keys that have a field


@section
class Settings(Sampling):
    """A page on this machine on which models are sampled side by side. How they are sampled is what the page begins with."""

    model: str | None = setting(
        None,
        "a run's folder, whose teacher and students are shown, another model's, or a hub name; null: the newest run",
    )
    models: Texts = setting((), "more models, as [name=path,...]: folders, runs or hub names")
    outputs: str = setting("outputs", "where runs live")
    tokenizer: str | None = setting(None, "of checkpoints that come without: a folder, file or hub name")
    prompt: str = setting("", "how the texts begin")
    port: int = setting(8421, "of the page, on this machine alone; 0: one that is free")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where the models run; auto: a GPU if there is one")
    num_samples: int = setting(1, "of each prompt, or of each of the classes in labels")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.port < 2**16, "port", self.port, "in [0, 65535]")

    def unused(self) -> dict[str, str]:
        """Where runs live, and what the page has no teacher of a hybrid for."""
        return {"hybrid_last": "on the page"} | ({"outputs": "where a model is given"} if self.model else {})


def main(argv: Sequence[str]) -> int:
    """Show the page until Ctrl-C. The exit status; bad input ends the program with 2."""
    return run_command("di4c demo", Settings, serve, argv)


def serve(settings: Settings) -> None:
    """Load the models, and answer the page until the program is interrupted."""
    import uvicorn

    from di4c_lm.runs.demo.server import app

    with listening(settings.port) as listener:
        models = load_models(settings)
        for model in models.values():  # the first call of a network takes longer than those after it
            model.sample(1, steps=1)
        sys.stdout.write(
            f"{', '.join(models)}: http://{_HOST}:{listener.getsockname()[1]}  (on this machine alone; Ctrl-C ends it)\n"
        )
        sys.stdout.flush()
        options: Any = {"ws": "none", "lifespan": "off", "log_level": "warning", "timeout_graceful_shutdown": 2}
        server = uvicorn.Server(uvicorn.Config(app(models, facts_of(models, settings)), **options))
        try:
            asyncio.run(server.serve(sockets=[listener]))
        except KeyboardInterrupt:  # how it is meant to end
            return


def load_models(settings: Settings) -> dict[str, Any]:
    """The models of the page by name, all of text or all of images: of a run without a name all that it has, else one.

    Raises `ValueError` for one that is absent or cannot be read, a name that is there twice, and kinds that do not go together.
    """
    found: dict[str, Any] = {}
    for argument in (settings.model or str(find_run(None, settings.outputs)), *settings.models):
        name, _, place = ("", "", argument) if Path(argument).exists() else argument.rpartition("=")
        device = device_of(settings.device)
        if name == "" and (Path(place) / PARTS).is_file():
            new = {one: load(place, which=one, device=device) for one in FinishedRun.read(Path(place)).models}
        else:
            new = {name or Path(place).resolve().name: load(place, tokenizer=settings.tokenizer, device=device)}
        twice = ", ".join(found.keys() & new.keys())
        check(not twice, "models", argument, f"said as <name>={place}, with another name than {twice}")
        found |= new
    kinds = {_kind(model) for model in found.values()}
    check(len(kinds) == 1, "models", list(found), "all of text or all of images")
    return found


def facts_of(models: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """What the page's script must know: the models, what there is to choose from, and the values that it begins with."""
    model, plain = next(iter(models.values())), to_dict(settings)
    usual, chosen = model.usual_sampler, plain.pop("sampler")
    kind = usual if chosen["kind"] == "usual" else chosen["kind"]
    samplers = {
        name: {"help": (made.__doc__ or "").partition("\n")[0], "settings": _settings_of(made)}
        for name, made in ((name, entry()) for name, entry in SAMPLERS.items())
        if isinstance(model.process, made.needs)
    }
    said = {f"sampler.{key}": value for key, value in chosen.items() if key in samplers[kind]["settings"]}
    begin = {**{name: plain[name] for name in _SHOWN}, "prompt": settings.prompt, "sampler": kind, **said}
    return {
        "kind": _kind(model),
        "models": {name: {"classes": getattr(one, "num_classes", 0)} for name, one in models.items()},
        "samplers": samplers,
        "grids": [*GRIDS, *(MEASURED if isinstance(model, TextModel) else ())],
        "begin": {key: as_said(value) for key, value in begin.items()},
    }


def _settings_of(sampler: Any) -> dict[str, dict[str, str]]:
    """Those of a sampler that hold one value, with it and a line of help."""
    plain = {name: one for name, one in fields(type(sampler)).items() if not one.is_section}
    return {name: {"value": as_said(getattr(sampler, name)), "help": one.help} for name, one in plain.items()}


def _kind(model: Any) -> str:
    return "text" if isinstance(model, TextModel) else "images"


def listening(port: int) -> socket.socket:
    """A socket at the port, of this machine alone. Raises `ValueError` that names a free port where it is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise ValueError(
            f"port={port} is taken, by another demo perhaps: say port={free_port()}, which is free"
        ) from error
    return listener

"""Write text, or draw images, with a student or teacher: text unconditional, from prompts, filling in what a prompt leaves masked, or past
the context; images of any class or of those in labels.

di4c sample model=<run, folder, file or hub name> [steps=8] [prompt="The list"]... [sampler=remasking sampler.eta=0.04]
    [--show-steps]     --help lists the keys and the samplers
di4c sample model=<run, folder, file or hub name> [steps=8] [labels=[0,1,2]] [out=samples.png] [--show-steps]
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import Texts, at_least, check, fields, section, setting, to_dict
from di4c_lm.domains.domain import PARTS, TEACHER, find_run
from di4c_lm.domains.load import load
from di4c_lm.domains.text.model import TextModel
from di4c_lm.measure.render.pictures import tiles
from di4c_lm.measure.settings import device_of
from di4c_lm.runs.command import run_command
from di4c_lm.runs.reveal import Revealing, Token
from di4c_lm.runs.sampling import Sampling, labels_of
from di4c_lm.samplers.trajectory import OnScored, Sample, name_of

_COLOURS = (
    183,
    147,
    117,
    123,
    121,
    157,
    192,
    229,
)  # of the 256 of a terminal, from violet to yellow, light enough for black letters
_log = logging.getLogger(__name__)
_OF_TEXT, _OF_IMAGES = (
    ("prompt", "prompts_file", "chat", "length", "tokenizer", "text", "jsonl"),
    ("labels", "guidance", "out", "codec"),
)


@section
class Settings(Sampling):
    """Text, or images, from a checkpoint. `prompt=` may be said several times, and may hold the tokenizer's mask token where text is to be
    filled in.

    --show-steps is show_steps=true. A sampler's own settings are said as sampler.<setting>=<value>.
    """

    model: str | None = setting(
        None,
        "a run's folder, one that save_pretrained wrote, a hub name, or with `tokenizer` any checkpoint; null: the newest run",
    )
    outputs: str = setting("outputs", "where runs live")
    tokenizer: str | None = setting(None, "of a text checkpoint that comes without: a folder, file or hub name")
    codec: str | None = setting(None, "of a checkpoint of codes that comes without: the folder of its VQGAN")
    revision: str | None = setting(None, "of a checkpoint on the hub")
    weights: Literal["ema", "raw"] = setting("ema", "of a checkpoint that holds both")
    batch_size: int = setting(16, "samples at once")
    prompt: Texts = setting((), "how the texts begin")
    prompts_file: str | None = setting(None, 'one prompt a line; .jsonl: one object with "prompt" a line')
    chat: bool = setting(False, "each prompt is a user's message, put into the tokenizer's chat template")
    length: int | None = setting(None, "tokens; null: the model's context. More takes sampler=blocks")
    teacher: str | None = setting(None, "of a hybrid; null: the run's")
    device: Literal["auto", "cpu", "cuda"] = setting("cpu", "that computes")
    show_steps: bool = setting(
        False,
        "print the first text of each batch after each step, or of images make a line of the picture of each step",
    )
    text: str | None = setting(None, "file for the texts, blank lines between them")
    jsonl: str | None = setting(None, "file for one object a text")
    out: str = setting("samples.png", "file for the images, side by side, a line a class")

    OLD_KEYS: ClassVar[dict[str, str]] = {"sampler=hybrid": "hybrid_last=<steps of the teacher>"}

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "batch_size")
        check(self.length is None or self.length >= 1, "length", self.length, "at least 1")
        given = not (self.prompt and self.prompts_file)
        check(given, "prompts_file", self.prompts_file, "absent where prompt is given")
        check(self.out.endswith(".png"), "out", self.out, "a file whose name ends in .png")

    def unused(self) -> dict[str, str]:
        """The teacher of no hybrid, and how a checkpoint is read that comes with all it needs."""
        found = {} if self.hybrid_last else {"teacher": "where hybrid_last=0"}
        return (
            found
            | ({} if self.model else dict.fromkeys(("tokenizer", "codec"), "where no model is given"))
            | ({"outputs": "where a model is given"} if self.model else {})
        )

    def refuse_of_others(self, model: Any) -> None:
        """Raise `ValueError` for what is said that the model has no use for."""
        kind, others = ("text", _OF_IMAGES) if isinstance(model, TextModel) else ("images", _OF_TEXT)
        for name in others:
            value = getattr(self, name)
            check(value == fields(type(self))[name].default, name, value, f"left out for {kind}")


def main(argv: Sequence[str]) -> int:
    """Sample, print, and perhaps write. The exit status; bad input ends the program with 2."""
    return run_command("di4c sample", Settings, write_samples, _arguments(argv))


def write_samples(settings: Settings) -> str | None:
    """Texts of every prompt, to the terminal batch by batch, to `settings.text` and `settings.jsonl`; or images to `settings.out`."""
    prompts = _prompts(settings)
    model, teacher = _models(settings)
    settings.refuse_of_others(model)
    how = {**settings.how(model), "batch_size": settings.batch_size, "teacher": teacher}
    if not isinstance(model, TextModel):
        return _write_images(settings, model, how)
    if settings.chat:
        prompts = list(map(model.chat_prompt, prompts))
    x_init = model.begin(prompts, settings.num_samples, length=settings.length, seed=settings.seed)
    shown = _printed(model, settings.steps) if settings.show_steps else None
    sampler, texts = settings.sampler_for(model), []

    def finished(first: int, batch: Sample) -> None:
        said = f"{name_of(sampler)}, {batch.nfe:g} network calls a sample"
        for number, text in enumerate(model.tokenizer.batch_decode(batch.x), first + 1):
            texts.append(text)
            print(f"--- {number}/{len(x_init)} ({said})\n{text}", flush=True)

    started = time.perf_counter()
    tokens_ND, nfe = model.sample_tokens(
        len(x_init), settings.steps, seed=settings.seed, x_init=x_init, on_scored=shown, on_batch=finished, **how
    )
    seconds = time.perf_counter() - started
    if settings.text:
        Path(settings.text).write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    if settings.jsonl:
        plain = {name: value for name, value in to_dict(settings).items() if name not in ("prompt", "text")}
        told = {**plain, "sampler": name_of(sampler), "sampler_settings": to_dict(sampler)}
        rows = [
            {"prompt": prompts[n // settings.num_samples], "text": text, "tokens": tokens, "nfe": nfe, "settings": told}
            for n, (text, tokens) in enumerate(zip(texts, tokens_ND.tolist(), strict=True))
        ]
        Path(settings.jsonl).write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
    new = int((x_init == model.mask_id).sum()) if model.masks else x_init.numel()
    _log.info("%d texts, %s tokens in %.1f s: %s tokens/s", len(texts), f"{new:,}", seconds, f"{new / seconds:,.0f}")
    return None


def _write_images(settings: Settings, model: Any, how: dict[str, Any]) -> str:
    """The images, a line a class; with `show_steps` those of the first batch, a line a step. What was written, in words."""
    labels, states = labels_of(settings, model), []
    count = settings.num_samples if labels is None else len(labels)
    images, nfe = model.images(count, settings.steps, settings.seed, labels, on_step=states.append, **how)
    across = settings.num_samples if settings.labels else math.ceil(math.sqrt(count))
    if settings.show_steps:
        across = min(settings.batch_size, count)
        of_first = states[: len(states) // -(-count // settings.batch_size)]
        images = np.concatenate([model.state_images(x_BD) for x_BD in of_first])
    Path(settings.out).write_bytes(tiles(images, across))
    sampler = name_of(settings.sampler_for(model))
    return f"{settings.out}: {count} images ({sampler}, {nfe:g} network calls a sample)"


def _printed(model: TextModel, steps: int) -> OnScored:
    """Prints how the first text of a batch appears: MASK as a block; in a terminal coloured by step, unless NO_COLOR is set."""
    revealing, coloured = Revealing(model), sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def show(x_BD: Int64[Tensor, "B D"], log_p_BD: Float64[Tensor, "B D"], step: int) -> None:
        revealing(x_BD[:1], log_p_BD[:1], step)
        if step:
            (tokens,), (masked,) = revealing.tokens, revealing.masked
            text = "".join(_in_terminal(token, steps if coloured else 0) for token in tokens)
            print(f"step {step:3}, {masked} masked: {text}")

    return show


def _in_terminal(token: Token, steps: int) -> str:
    """The token, on the colour of its step among `steps`; of 0 there are no colours."""
    if token.piece is None:
        return "█"
    if not (steps and token.step and token.piece):
        return token.piece
    colour = _COLOURS[min((token.step - 1) * len(_COLOURS) // steps, len(_COLOURS) - 1)]
    return f"\x1b[30;48;5;{colour}m{token.piece}\x1b[0m"


def _arguments(argv: Sequence[str]) -> list[str]:
    """The arguments with repeated prompts as one list."""
    prompts = [argument.partition("=")[2] for argument in argv if argument.startswith("prompt=")]
    rest = [argument for argument in argv if not argument.startswith("prompt=")]
    return [*rest, f"prompt={json.dumps(prompts, ensure_ascii=False)}"] if prompts else rest


def _prompts(settings: Settings) -> list[str]:
    if settings.prompts_file is None:
        return list(settings.prompt) or [""]
    lines = [line for line in Path(settings.prompts_file).read_text(encoding="utf-8").splitlines() if line]
    if not lines:
        raise ValueError(f"prompts_file={settings.prompts_file!r} holds no prompt")
    if not settings.prompts_file.endswith(".jsonl"):
        return lines
    return [_prompt_of(settings.prompts_file, number, line) for number, line in enumerate(lines, 1)]


def _prompt_of(path: str, number: int, line: str) -> str:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise ValueError(f'{path}, line {number}: expected an object with a text "prompt", got {line[:60]!r}')
    return found["prompt"]


def _models(settings: Settings) -> tuple[Any, Any]:
    """What samples, and the teacher of a hybrid."""
    source = settings.model or str(find_run(None, settings.outputs))
    model, device = _load(settings, source), device_of(settings.device)
    if not settings.hybrid_last:
        check(settings.teacher is None, "teacher", settings.teacher, "absent where hybrid_last=0")
        return model, None
    if settings.teacher:
        return model, _load(settings, settings.teacher)
    if not (Path(source) / PARTS).exists():
        raise ValueError(
            f"hybrid_last={settings.hybrid_last}: {source} is no run with a teacher; name one by teacher=<checkpoint>"
        )
    return model, load(source, which=TEACHER, device=device)


def _load(settings: Settings, source: str) -> Any:
    """A run's student, a folder of ours, or any checkpoint with what it comes without."""
    return load(
        source,
        tokenizer=settings.tokenizer,
        codec=settings.codec,
        revision=settings.revision,
        weights=settings.weights,
        device=device_of(settings.device),
    )

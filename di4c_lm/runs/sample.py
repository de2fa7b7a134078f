"""Write text with a student or teacher: unconditional, from prompts, filling in what a prompt leaves masked, or past the context.

di4c sample model=<run, folder, file or hub name> [steps=8] [prompt="The list"]... [sampler=remasking sampler.eta=0.04]
    [--show-steps]     --help lists the keys and the samplers
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from di4c_lm.core.settings import Texts, at_least, check, choice, section, setting, to_dict
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.measure.settings import device_of
from di4c_lm.runs.command import run_command
from di4c_lm.samplers.ancestral import Ancestral
from di4c_lm.samplers.registry import SAMPLERS

if TYPE_CHECKING:
    from di4c_lm.domains.text.model import TextModel

_DECODING = ("temperature", "top_p", "noise", "end", "hybrid_last")


@section
class Settings:
    """Text from a checkpoint. `prompt=` may be said several times, and may hold the tokenizer's mask token where text is to be filled in.

    --show-steps is show_steps=true. A sampler's own settings are said as sampler.<setting>=<value>.
    """

    model: str | None = setting(
        None,
        "a run's folder, one that save_pretrained wrote, a hub name, or with `tokenizer` any checkpoint; null: the newest run",
    )
    outputs: str = setting(
        "outputs", "folder that holds the runs, the newest of which is meant where no model is given"
    )
    tokenizer: str | None = setting(
        None, "tokenizer of a checkpoint that comes without one: a folder, file or hub name"
    )
    revision: str | None = setting(None, "branch, tag or commit of a checkpoint on the hub")
    weights: Literal["ema", "raw"] = setting(
        "ema", "which weights to read from a checkpoint that holds both: the moving average or the raw ones"
    )
    steps: int = setting(8, "sampling steps: network calls for each text, but for samplers that count them otherwise")
    num_samples: int = setting(4, "texts for each prompt")
    batch_size: int = setting(16, "texts in a batch")
    prompt: Texts = setting((), "how the texts begin; may be given several times")
    prompts_file: str | None = setting(None, 'file with a prompt per line; of a .jsonl file the field "prompt"')
    length: int | None = setting(
        None, "tokens in a text; null: as many as the model's context. More takes sampler=blocks"
    )
    sampler: Any = choice(SAMPLERS, Ancestral(), "how text is sampled, step by step")
    grid: tuple[float, ...] | str = setting(
        "uniform", "times of the steps: uniform, cosine, published, optimised, fewest, or a list such as [1,0.5,0]"
    )
    hybrid_last: int = setting(0, "number of last steps that the teacher takes")
    teacher: str | None = setting(None, "teacher of the last steps; null: the run's")
    temperature: float = setting(1.0, "divides the logits, after λ is sampled; below 1 texts are more conservative")
    top_p: float = setting(
        1.0, "nucleus sampling: keep the fewest likeliest tokens that together have this probability"
    )
    noise: Literal["exact", "legacy_fp32"] = setting(
        "exact", "exact: inverse CDF in float64; legacy_fp32: float32 noise, as in the published code"
    )
    end: Literal["sample", "argmax"] = setting(
        "sample", "what the last step takes: a sample, or the likeliest tokens (argmax)"
    )
    hold_lambda: bool = setting(False, "keep one λ for all steps of a text; else each network call has its own")
    seed: int = setting(0, "random seed of all texts")
    device: Literal["auto", "cpu", "cuda"] = setting("cpu", "where the model runs; auto: a GPU if there is one")
    show_steps: bool = setting(False, "print the first text of each batch after each step")
    text: str | None = setting(None, "file to write the texts to, with blank lines between")
    jsonl: str | None = setting(None, "file to write an object per text to, one per line")

    OLD_KEYS = {"sampler=hybrid": "hybrid_last=<steps of the teacher>"}

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "num_samples", "batch_size")
        check(self.length is None or self.length >= 1, "length", self.length, "at least 1")
        given = not (self.prompt and self.prompts_file)
        check(given, "prompts_file", self.prompts_file, "absent where prompt is given")

    def unused(self) -> dict[str, str]:
        """The teacher of no hybrid, and how a checkpoint is read that comes with all it needs."""
        found = {} if self.hybrid_last else {"teacher": "where hybrid_last=0"}
        return (
            found
            | ({} if self.model else {"tokenizer": "where no model is given"})
            | ({"outputs": "where a model is given"} if self.model else {})
        )


def main(argv: Sequence[str]) -> int:
    """Sample, print, and perhaps write. The exit status; bad input ends the program with 2."""
    return run_command("di4c sample", Settings, write_samples, _arguments(argv))


def write_samples(settings: Settings) -> None:
    """The samples of every prompt, to the terminal, to `settings.text` and to `settings.jsonl`."""
    prompts = _prompts(settings)
    model, teacher = _models(settings)
    x_init = model.encode_prompts(prompts, settings.num_samples, length=settings.length)
    tokens_ND, nfe = model.sample_tokens(
        len(x_init),
        settings.steps,
        seed=settings.seed,
        batch_size=settings.batch_size,
        x_init=x_init,
        sampler=settings.sampler,
        grid=settings.grid,
        hold_latents=settings.hold_lambda,
        teacher=teacher,
        on_step=_printed(model) if settings.show_steps else None,
        **{name: getattr(settings, name) for name in _DECODING},
    )
    plain = {name: value for name, value in to_dict(settings).items() if name not in ("prompt", "text")}
    name, texts = plain["sampler"].pop("kind"), model.tokenizer.batch_decode(tokens_ND)
    for number, text in enumerate(texts):
        print(f"--- {number + 1}/{len(texts)} ({name}, {nfe:g} network calls a sample)\n{text}")
    if settings.text:
        Path(settings.text).write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    if settings.jsonl:
        told = {**plain, "sampler": name, "sampler_settings": plain["sampler"]}
        rows = [
            {"prompt": prompts[n // settings.num_samples], "text": text, "tokens": tokens, "nfe": nfe, "settings": told}
            for n, (text, tokens) in enumerate(zip(texts, tokens_ND.tolist(), strict=True))
        ]
        Path(settings.jsonl).write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )


def _printed(model: "TextModel") -> Callable[[Any], None]:
    """Prints how the first sample of a batch appears: MASK as a block, step by step."""
    steps, mask_id = itertools.count(1), model.process.mask_id

    def show(x_BD: Any) -> None:
        text = str(model.tokenizer.decode(x_BD[0])).replace(str(model.tokenizer.decode([mask_id])), "█")
        print(f"step {next(steps):3}, {int((x_BD[0] == mask_id).sum())} masked: {text}")

    return show


def _arguments(argv: Sequence[str]) -> list[str]:
    """The arguments with repeated prompts as one list."""
    prompts = [argument.partition("=")[2] for argument in argv if argument.startswith("prompt=")]
    rest = [argument for argument in argv if not argument.startswith("prompt=")]
    arguments = ["show_steps=true" if argument == "--show-steps" else argument for argument in rest]
    return [*arguments, f"prompt={json.dumps(prompts, ensure_ascii=False)}"] if prompts else arguments


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


def _models(settings: Settings) -> "tuple[TextModel, TextModel | None]":
    """What writes, and the teacher of a hybrid."""
    from di4c_lm.domains.domain import PARTS, find_run
    from di4c_lm.domains.text.model import load_run

    source = settings.model or str(find_run(None, settings.outputs))
    model = _load(settings, source)
    if not settings.hybrid_last:
        check(settings.teacher is None, "teacher", settings.teacher, "absent where hybrid_last=0")
        return model, None
    if settings.teacher:
        return model, _load(settings, settings.teacher)
    if not (Path(source) / PARTS).exists():
        raise ValueError(
            f"hybrid_last={settings.hybrid_last}: {source} is no run with a teacher; name one by teacher=<checkpoint>"
        )
    return model, load_run(Path(source)).teacher.to(device_of(settings.device))


def _load(settings: Settings, source: str) -> "TextModel":
    """A run's student, a folder of ours, or any checkpoint with `settings.tokenizer`."""
    from di4c_lm.domains.domain import PARTS, STUDENT
    from di4c_lm.domains.text.model import TextModel, load_run

    folder = Path(source)
    if (folder / STUDENT).is_dir():
        return TextModel.from_pretrained(folder / STUDENT, device=device_of(settings.device))
    if (folder / PARTS).exists():
        return load_run(folder).student.to(device_of(settings.device))
    if settings.tokenizer is None or (folder / "tokenizer.json").exists():
        return TextModel.from_pretrained(source, device=device_of(settings.device))
    from di4c_lm.data.text.tokenizers import load_tokenizer

    check(settings.tokenizer != "train", "tokenizer", settings.tokenizer, "a folder, file or hub name")
    tokenizer = load_tokenizer(DataConfig(tokenizer=settings.tokenizer), (), Path())
    return TextModel.from_checkpoint(
        source, tokenizer, revision=settings.revision, weights=settings.weights, device=settings.device
    )

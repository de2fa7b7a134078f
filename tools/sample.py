"""Write text with a student or teacher: unconditional, from prompts, filling in what a prompt leaves masked, or past the context.

python tools/sample.py model=<run, folder, file or hub name> [steps=8] [prompt="The list"]... [sampler=remasking sampler.eta=0.04]
    [--show-steps]     --help lists the keys and the samplers
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from di4c_lm.core.compose import parse
from di4c_lm.core.settings import check, class_of, fields
from di4c_lm.core.terminal import bad_input_ends
from di4c_lm.domains.text.settings import DataConfig

if TYPE_CHECKING:
    from di4c_lm.domains.text.model import TextModel

PROGRAM = "tools/sample.py"
_OPTION = "sampler."


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class SampleConfig:
    """Text from a checkpoint. `prompt=` may be said several times, and may hold the tokenizer's mask token where text is to be filled in.

    --show-steps is show_steps=true. A sampler's own settings are said as sampler.<setting>=<value>.
    """

    # A run's folder, a folder that save_pretrained wrote, or a hub name of one; absent: the newest run. With `tokenizer`: any checkpoint.
    model: str | None = None
    outputs: str = "outputs"  # where runs live
    tokenizer: str | None = None  # of a checkpoint that comes without: a folder, file or hub name
    revision: str | None = None  # of a checkpoint on the hub
    weights: Literal["ema", "raw"] = "ema"  # of a checkpoint that holds both
    steps: int = 8
    num_samples: int = 4  # of each prompt
    batch_size: int = 16
    prompt: tuple[str, ...] = ()
    prompts_file: str | None = None  # one prompt a line; .jsonl: one object with "prompt" a line
    length: int | None = None  # tokens; absent: the model's context. More takes sampler=blocks
    sampler: str = "ancestral"
    sampler_settings: dict[str, bool | int | float | str] = field(default_factory=dict)
    grid: str | tuple[float, ...] = (
        "uniform"  # uniform, cosine, published, optimised, fewest, or times such as [1,0.5,0]
    )
    hybrid_last: int = 0  # steps at the end that the teacher takes
    teacher: str | None = None  # of a hybrid; absent: the run's
    temperature: float = 1.0
    top_p: float = 1.0
    noise: Literal["exact", "legacy_fp32"] = "exact"
    end: Literal["sample", "argmax"] = "sample"  # what the last step takes
    hold_lambda: bool = False  # one λ a sample in place of one a call
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    show_steps: bool = False  # print the first sample of each batch after each step
    text: str | None = None  # write the texts here, blank lines between them
    jsonl: str | None = None  # write one object a sample here

    def __post_init__(self) -> None:
        for name in ("steps", "num_samples", "batch_size"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "a value of at least 1")
        check(self.length is None or self.length >= 1, "length", self.length, "a value of at least 1")
        given = not (self.prompt and self.prompts_file)
        check(given, "prompts_file", self.prompts_file, "absent where prompt is given")


def main(argv: list[str]) -> int:
    """Sample, print, and perhaps write; bad input ends with exit status 2."""
    if any(word in ("-h", "--help") for word in argv):
        sys.stdout.write(_samplers_help())
    settings = parse(SampleConfig, _words(argv), program=f"python {PROGRAM}")
    with bad_input_ends(OSError):
        write_samples(settings)
    return 0


def write_samples(settings: SampleConfig) -> None:
    """The samples of every prompt, to the terminal, to `settings.text` and to `settings.jsonl`."""
    from di4c_lm.samplers.registry import make_sampler

    prompts = _prompts(settings)
    sampler = make_sampler(
        settings.sampler, settings.sampler_settings
    )  # a wrong setting ends before anything is loaded
    model, teacher = _models(settings)
    x_init = model.encode_prompts(prompts, settings.num_samples, length=settings.length)
    tokens_ND, nfe = model.sample(
        len(x_init),
        settings.steps,
        seed=settings.seed,
        batch_size=settings.batch_size,
        x_init=x_init,
        sampler=sampler,
        grid=settings.grid,
        temperature=settings.temperature,
        top_p=settings.top_p,
        noise=settings.noise,
        end=settings.end,
        hold_latents=settings.hold_lambda,
        hybrid_last=settings.hybrid_last,
        teacher=teacher,
        on_step=_Shown(model) if settings.show_steps else None,
    )
    texts = model.tokenizer.batch_decode(tokens_ND)
    for number, text in enumerate(texts):
        print(f"--- {number + 1}/{len(texts)} ({settings.sampler}, {nfe:g} network calls a sample)\n{text}")
    if settings.text:
        Path(settings.text).write_text("\n\n".join(texts) + "\n")
    if settings.jsonl:
        said = {key: value for key, value in asdict(settings).items() if key not in ("prompt", "text")}
        rows = [
            {"prompt": prompts[n // settings.num_samples], "text": text, "tokens": tokens, "nfe": nfe, "settings": said}
            for n, (text, tokens) in enumerate(zip(texts, tokens_ND.tolist(), strict=True))
        ]
        Path(settings.jsonl).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


class _Shown:
    """Prints how the first sample of a batch appears: MASK as a block, step by step."""

    def __init__(self, model: "TextModel") -> None:
        self._model = model
        self._steps = 0

    def __call__(self, x_BD: Any) -> None:
        self._steps += 1
        mask = self._model.tokenizer.decode([self._model.process.mask_id])
        masked = int((x_BD[0] == self._model.process.mask_id).sum())
        text = str(self._model.tokenizer.decode(x_BD[0])).replace(str(mask), "█")
        print(f"step {self._steps:3}, {masked} masked: {text}")


def _words(argv: Sequence[str]) -> list[str]:
    """The words as `parse_words` reads them: text is not YAML, repeated prompts and a sampler's settings are collected."""
    import yaml

    words, prompts, options = [], [], {}
    for word in argv:
        key, equals, text = word.partition("=")
        if word == "--show-steps":
            words.append("show_steps=true")
        elif key == "prompt" and equals:
            prompts.append(text)
        elif key.startswith(_OPTION) and equals:
            options[key.removeprefix(_OPTION)] = yaml.safe_load(text)
        else:
            words.append(word)
    if prompts:
        words.append(f"prompt={json.dumps(prompts)}")
    return [*words, f"sampler_settings={json.dumps(options)}"] if options else words


def _prompts(settings: SampleConfig) -> list[str]:
    if settings.prompts_file is None:
        return list(settings.prompt) or [""]
    lines = [line for line in Path(settings.prompts_file).read_text().splitlines() if line]
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


def _models(settings: SampleConfig) -> "tuple[TextModel, TextModel | None]":
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
    return model, load_run(Path(source)).teacher.to(settings.device)


def _load(settings: SampleConfig, source: str) -> "TextModel":
    """A run's student, a folder of ours, or any checkpoint with `settings.tokenizer`."""
    from di4c_lm.domains.domain import PARTS, STUDENT
    from di4c_lm.domains.text.model import TextModel, load_run

    folder = Path(source)
    if (folder / STUDENT).is_dir():
        return TextModel.from_pretrained(folder / STUDENT, device=settings.device)
    if (folder / PARTS).exists():
        return load_run(folder).student.to(settings.device)
    if settings.tokenizer is None or (folder / "tokenizer.json").exists():
        return TextModel.from_pretrained(source, device=settings.device)
    from di4c_lm.data.text.tokenizers import load_tokenizer

    check(settings.tokenizer != "train", "tokenizer", settings.tokenizer, "a folder, file or hub name")
    tokenizer = load_tokenizer(DataConfig(tokenizer=settings.tokenizer), (), Path())
    return TextModel.from_checkpoint(
        source, tokenizer, revision=settings.revision, weights=settings.weights, device=settings.device
    )


def _samplers_help() -> str:
    from di4c_lm.samplers.registry import SAMPLERS
    from di4c_lm.samplers.trajectory import Sampler, name_of

    lines = ["samplers and their settings, sampler.<setting>=<value>:"]
    for name, entry in SAMPLERS.items():
        implied = entry.keywords if isinstance(entry, partial) else {}
        shown = {key: implied.get(key, one.default) for key, one in fields(class_of(entry)).items()}
        said = [f"{key}={name_of(value) if isinstance(value, Sampler) else value}" for key, value in shown.items()]
        lines.append(f"  {name:24}{' '.join(said)}")
    return "\n".join(lines) + "\n\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

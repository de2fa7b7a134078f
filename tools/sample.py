"""Write text with a student or teacher: unconditional, from prompts, or filling in what a prompt leaves masked.

python tools/sample.py model=<run, folder or hub name> [steps=8] [prompt="The list"] [num_samples=4] ...     --help lists the keys
"""

import sys
from dataclasses import asdict
from json import dumps
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from di4c_lm import cli
from di4c_lm.config import check


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class SampleConfig:
    """Text from a checkpoint. A prompt may hold the tokenizer's mask token where text is to be filled in."""

    model: str | None = (
        None  # a run's folder, a folder that save_pretrained wrote, or a hub name; absent: the newest run
    )
    outputs: str = "outputs"  # where runs live
    steps: int = 8
    num_samples: int = 4  # of each prompt
    prompt: str = ""
    prompts_file: str | None = None  # one prompt a line
    temperature: float = 1.0
    seed: int = 0
    show_steps: bool = False  # print the first sample after each step
    jsonl: str | None = None  # write one object a sample here

    def __post_init__(self) -> None:
        check(self.steps >= 1, "steps", self.steps, "a value of at least 1")
        check(self.num_samples >= 1, "num_samples", self.num_samples, "a value of at least 1")
        check(self.temperature > 0, "temperature", self.temperature, "a value above 0")
        check(
            not (self.prompt and self.prompts_file), "prompts_file", self.prompts_file, "absent where prompt is given"
        )


def main(argv: list[str]) -> int:
    """Sample, print, and perhaps write; bad input ends with exit status 2."""
    settings = cli.parse_words(SampleConfig, argv, "tools/sample.py")
    try:
        write_samples(settings)
    except (ValueError, ConnectionError, OSError) as error:
        cli.fail(str(error))
    return 0


def write_samples(settings: SampleConfig) -> None:
    """The samples of every prompt, to the terminal and to `settings.jsonl`."""
    from di4c_lm.domains.text import STUDENT, TextModel
    from di4c_lm.metrics.runs import find_run

    source = settings.model or str(find_run(None, settings.outputs))
    student = Path(source) / STUDENT
    model = TextModel.from_pretrained(student if student.is_dir() else source)
    prompts = Path(settings.prompts_file).read_text().splitlines() if settings.prompts_file else [settings.prompt]
    x_init = model.encode_prompts(prompts, settings.num_samples)

    def show(x_BD) -> None:
        print(f"    {model.tokenizer.decode(x_BD[0])!r}")

    tokens_ND, nfe = model.sample(
        len(x_init),
        settings.steps,
        seed=settings.seed,
        x_init=x_init,
        temperature=settings.temperature,
        on_step=show if settings.show_steps else None,
    )
    texts = model.tokenizer.batch_decode(tokens_ND)
    for number, text in enumerate(texts):
        print(f"--- {number + 1}/{len(texts)} ({settings.steps} steps, {nfe:g} network calls a sample)\n{text}")
    if settings.jsonl:
        rows = [
            {
                "prompt": prompts[n // settings.num_samples],
                "text": text,
                "tokens": tokens_ND[n].tolist(),
                **asdict(settings),
            }
            for n, text in enumerate(texts)
        ]
        Path(settings.jsonl).write_text("".join(dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

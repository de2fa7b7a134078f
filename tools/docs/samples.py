"""The picture of samples beside each other: each token coloured by the step that revealed it.

    python tools/docs/samples.py run=<folder> [steps=2] [seed=0] [prompt=...]     samples the run's teacher and student anew

writes docs/results/two_steps.json; `tools/render_docs.py` draws docs/assets/two_steps.svg from it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from di4c_lm.core.files import write_text
from di4c_lm.core.settings import section, setting
from di4c_lm.runs.command import run_command
from tools.docs.results import RESULTS, ROOT

NAME = "two_steps"
PICTURE = ROOT / "docs" / "assets" / f"{NAME}.svg"
_COLOURS = ("#6b7280", "#1f5fa8", "#b8480f", "#1d7a52", "#7a3fa0")  # what was given, then step by step
_LINE_LETTERS, _LETTER, _LINE, _EDGE, _HEAD = 44, 8.1, 21, 18, 34  # a line's length; sizes in pixels


@section
class Settings:
    """Sample a run's teacher and student, and keep what each step revealed."""

    run: str = setting("", "a run's folder")
    steps: int = setting(2, "network calls")
    seed: int = setting(0, "of the samples")
    num_samples: int = setting(1, "of each model")
    prompt: str = setting("", "how they begin")
    data: str = setting("", "what the manifest says of the data")
    model: str = setting("", "what it says of the models")
    training: str = setting("", "what it says of their training")


def sample(settings: Settings) -> str:
    """Write the result file; its path."""
    import di4c_lm

    rows = [
        row
        for which in ("teacher", "student")
        for row in _rows(di4c_lm.load(settings.run, which=which), which, settings)
    ]
    words = (
        f"python tools/docs/samples.py run=<run> steps={settings.steps} seed={settings.seed} prompt={settings.prompt!r}"
    )
    manifest = {
        "date": date.today().isoformat(),
        "source": "samples as they came, none chosen",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        "command": words,
        **{name: getattr(settings, name) or "not recorded" for name in ("data", "model", "training")},
        "evaluator": "none: to be read",
        "samples": f"{settings.num_samples} a model",
        "seeds": str(settings.seed),
        "interval": "none",
        "machine": "CPU",
        "counting": "n-grams are not shown",
    }
    views = {"default": {"columns": [["", "{model}"], ["network calls", "{nfe}"]]}}
    path = RESULTS / f"{NAME}.json"
    write_text(
        path, json.dumps({"manifest": manifest, "views": views, "rows": rows}, indent=1, ensure_ascii=False) + "\n"
    )
    return str(path)


def _rows(model: Any, which: str, settings: Settings) -> Iterator[dict[str, Any]]:
    x_ND = model.encode_prompts([settings.prompt], settings.num_samples)
    step_ND, seen = x_ND.new_zeros(x_ND.shape), [x_ND]

    def look(x_BD: Any) -> None:
        step_ND[(x_BD != seen[-1]) & (seen[-1] == model.process.mask_id)] = len(seen)
        seen.append(x_BD.clone())

    x_ND, nfe = model.sample_tokens(len(x_ND), settings.steps, seed=settings.seed, x_init=x_ND, on_step=look)
    for tokens, steps in zip(x_ND.tolist(), step_ND.tolist(), strict=True):
        whole, pieces = "", []
        for count in range(1, len(tokens) + 1):
            text = str(model.tokenizer.decode(tokens[:count]))
            pieces.append(text[len(whole) :])
            whole = text
        yield {"model": which, "nfe": nfe, "tokens": [*zip(pieces, steps, strict=True)]}


def draw(result: Mapping[str, Any]) -> str:
    """SVG of the samples, those of a model in a column of their own."""
    columns: dict[str, list[str]] = {}
    heights = []
    for row in result["rows"]:
        title = f"{row['model']}, {row['nfe']:g} network calls"
        lines = columns.setdefault(title, [])
        lines += [*(["", ""] if lines else []), *_lines(row["tokens"])]
        heights.append(len(lines))
    width = _LINE_LETTERS * _LETTER + 2 * _EDGE
    height = max(heights) * _LINE + _HEAD + 2 * _EDGE
    steps = max(step for row in result["rows"] for _, step in row["tokens"])
    body = []
    for number, (title, lines) in enumerate(columns.items()):
        left = number * (width + _EDGE)
        body.append(
            f'<rect x="{left + 0.5}" y="0.5" width="{width}" height="{height}" rx="8" fill="#ffffff" stroke="#d5d9df"/>'
        )
        body.append(f'<text x="{left + _EDGE}" y="{_EDGE + 8}" class="head">{escape(title)}</text>')
        for place, line in enumerate(lines):
            body.append(
                f'<text x="{left + _EDGE}" y="{_EDGE + _HEAD + place * _LINE}" xml:space="preserve">{line}</text>'
            )
    legend = " ".join(f'<tspan fill="{_colour(step)}">revealed in step {step}</tspan>' for step in range(1, steps + 1))
    below = height + _EDGE
    whole = len(columns) * (width + _EDGE) - _EDGE + 1
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole:g} {below + 8:g}" role="img" '
        f'aria-label="{escape(_alt(columns))}">\n'
        "<style>text{font:13.5px ui-monospace,Menlo,Consolas,monospace}.head{font-weight:bold;fill:#2b2f36}</style>\n"
        + "\n".join(body)
        + f'\n<text x="{_EDGE}" y="{below:g}">{legend}</text>\n</svg>\n'
    )


def _alt(columns: Sequence[str] | Mapping[str, Any]) -> str:
    return "Samples beside each other: " + "; ".join(columns)


def _colour(step: int) -> str:
    return _COLOURS[min(step, len(_COLOURS) - 1)]


def _lines(tokens: Sequence[Sequence[Any]]) -> list[str]:
    """Tokens as coloured lines of letters, broken between tokens."""
    lines, length = [""], 0
    for piece, step in tokens:
        piece = piece.replace("\n", " ")
        if length + len(piece) > _LINE_LETTERS and length:
            lines.append("")
            length, piece = 0, piece.lstrip()
        lines[-1] += f'<tspan fill="{_colour(step)}">{escape(piece)}</tspan>'
        length += len(piece)
    return lines


if __name__ == "__main__":
    sys.exit(run_command("python tools/docs/samples.py", Settings, sample, sys.argv[1:]))

"""Compute and draw the figures of "How it works" anew, see tools/docs/figures.py:

python tools/draw_figures.py [out=docs/how_it_works/figures]
"""

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from di4c_lm.core.settings import section, setting
from di4c_lm.runs.command import run_command
from tools.docs import figures
from tools.docs.results import ROOT, read_result

FOLDER = ROOT / "docs" / "how_it_works" / "figures"
FIGURES: Mapping[str, Callable[[], Any]] = {
    "two_tokens": figures.draw_two_tokens,
    "steps": figures.draw_steps,
    "components": figures.draw_components,
    "control_variate": figures.draw_control_variate,
    "markov": lambda: figures.draw_markov(read_result("codes_markov"), read_result("copula_markov")),
}


@section
class Settings:
    """Compute and draw the figures of "How it works" anew."""

    out: str = setting(str(FOLDER), "folder that the SVG files are written to")


def draw_figures(settings: Settings) -> str:
    """Draw each; the files that were written."""
    import matplotlib

    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "di4c_lm", "svg.fonttype": "none", "font.family": "sans-serif"}):
        for name, draw in FIGURES.items():
            draw().savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    return f"{folder}: {', '.join(FIGURES)}"


main = functools.partial(run_command, "python tools/draw_figures.py", Settings, draw_figures)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

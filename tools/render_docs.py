"""Write the figures of README.md and docs/, and the picture of samples, anew from the result files; see tools/docs/results.py:

python tools/render_docs.py [check=true]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from di4c_lm.core.settings import section, setting
from di4c_lm.runs.command import run_command
from tools.docs.results import ROOT, pages, read_result, render
from tools.docs.samples import PICTURE, draw


@section
class Settings:
    """Write the figures of README.md and docs/ anew from the result files."""

    check: bool = setting(False, "true: write nothing, and say which pages differ from their result files")


def render_docs(settings: Settings) -> str:
    """Render every page, and the picture; what was done. Raises `ValueError` for pages that differ where they are only checked."""
    differing = []
    made = [*((path, render) for path in pages()), (PICTURE, lambda before: draw(read_result(PICTURE.stem)))]
    for path, render_one in made:
        try:
            before = path.read_text(encoding="utf-8") if path.is_file() else ""
            after = render_one(before)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(ROOT)}: {error}") from error
        if after != before:
            differing.append(path.relative_to(ROOT).as_posix())
            if not settings.check:
                path.write_text(after, encoding="utf-8")
    if differing and settings.check:
        raise ValueError(f"these differ from docs/results: {', '.join(differing)}; run python tools/render_docs.py")
    return f"written anew: {', '.join(differing)}" if differing else "every figure is that of its result file"


def main(argv: Sequence[str]) -> int:
    """Bad marks, and pages that differ where they are checked, end with status 2."""
    return run_command("python tools/render_docs.py", Settings, render_docs, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Write the figures of README.md and docs/ anew from the result files, see tools/docs/results.py:

python tools/render_docs.py [check=true]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from di4c_lm.core.settings import section, setting
from di4c_lm.runs.command import run_command
from tools.docs.results import ROOT, pages, render


@section
class Settings:
    """Write the figures of README.md and docs/ anew from the result files."""

    check: bool = setting(False, "true: write nothing, and say which pages differ from their result files")


def render_docs(settings: Settings) -> str:
    """Render every page; what was done. Raises `ValueError` for pages that differ where they are only checked."""
    differing = []
    for path in pages():
        try:
            before = path.read_text(encoding="utf-8")
            after = render(before)
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

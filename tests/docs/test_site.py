"""The site builds without a warning, shows formulas as MathML, and refers to nothing outside itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")

from tools.docs.formulas import to_mathml

ROOT = Path(__file__).parents[2]
_FETCHED = re.compile(
    r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//|<link[^>]+rel="stylesheet"[^>]+href="(?:https?:)?//'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as the gate builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(pages) > 30
    assert [path for path, text in pages.items() if _FETCHED.search(text)] == []
    assert [
        path for path in site.rglob("*.css") if re.search(r"url\([\"']?(?:https?:)?//", path.read_text("utf-8"))
    ] == []


@pytest.mark.parametrize(
    "text", ['<script defer src="https://x.org/a.js">', '<link rel="stylesheet" href="//x.org/a.css">']
)
def test_what_would_be_fetched_is_noticed(text: str) -> None:
    assert _FETCHED.search(text)


def test_no_formula_is_left_as_it_was_written(site: Path) -> None:
    assert [path for path in site.rglob("*.html") if "arithmatex" in path.read_text(encoding="utf-8")] == []


def test_the_font_of_formulas_is_there(site: Path) -> None:
    fonts = re.findall(r'url\("(.+?)"\)', (site / "assets" / "site.css").read_text(encoding="utf-8"))
    assert fonts and all((site / "assets" / font).stat().st_size > 10_000 for font in fonts)


def test_each_command_has_its_page(site: Path) -> None:
    assert "mixture.sinkhorn_iterations" in (site / "reference" / "train_text.html").read_text(encoding="utf-8")


def test_formulas_become_mathml() -> None:
    inline = to_mathml(r'<p>at <span class="arithmatex">\(x_t &lt; 1\)</span></p>')
    assert inline.startswith("<p>at <math") and "<msub>" in inline and 'display="inline"' in inline
    block = to_mathml(r'<div class="arithmatex">\[\begin{aligned} a &amp;= b \\ c &amp;= d \end{aligned}\]</div>')
    assert block.count("<mtr>") == 2 and "&amp;" not in block


def test_a_function_stands_apart_from_what_it_is_of() -> None:
    shown = to_mathml(r'<span class="arithmatex">\(\log p + \log(p) + \log_2 p\)</span>')
    assert shown.count("<mspace") == 1 and "<msub><mi>log</mi><mn>2</mn></msub>" in shown


@pytest.mark.parametrize("latex", [r"\nonsense{x}", r"a &amp; b"])
def test_a_formula_that_cannot_be_read_is_an_error(latex: str) -> None:
    with pytest.raises(ValueError, match="a formula must be LaTeX"):
        to_mathml(rf'<span class="arithmatex">\({latex}\)</span>')

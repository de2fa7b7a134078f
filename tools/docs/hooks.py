"""The events of an MkDocs build: pages that are made from the code or other files are added, and formulas become MathML."""

import sys
from pathlib import Path
from typing import Any

import nbconvert
import ziamath
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.docs import reference
from tools.docs.formulas import to_mathml

ROOT = Path(__file__).resolve().parents[2]
TOP = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}  # pages of the site that stand beside README.md
MATH_FONT = (
    Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
)  # browsers set MathML well with such a font alone
COMMANDS = "<!-- commands -->"  # where the page on the command line lists them


def on_config(config: Any) -> Any:
    """A page for each command, in the navigation under Reference."""
    pages = [{one.program: one.path} for one in reference.entries()]
    section = next(part["Reference"] for part in config.nav if "Reference" in part)
    section.append({"Commands": pages})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Pages of commands, notebooks and what stands beside README.md, and the font of formulas."""
    for one in reference.entries():
        files.append(File.generated(config, one.path, content=reference.page(one)))
    for source, path in TOP.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, path, content=text))
    for notebook in sorted(Path(config.docs_dir).glob("notebooks/*.ipynb")):
        text, resources = nbconvert.MarkdownExporter().from_filename(str(notebook))
        path = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, path, content=f"[This page as a notebook]({notebook.name})\n\n{text}"))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    files.append(File.generated(config, f"assets/{MATH_FONT.name}", abs_src_path=str(MATH_FONT)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The list of commands where it is asked for."""
    return markdown.replace(COMMANDS, reference.contents(reference.entries()))


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Formulas as MathML. A formula that cannot be read ends the build."""
    try:
        return to_mathml(html)
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error

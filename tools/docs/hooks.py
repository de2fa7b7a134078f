"""The events of an MkDocs build: pages that are made from the code are added, and formulas become MathML."""

import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.docs.formulas import to_mathml


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Formulas as MathML. A formula that cannot be read ends the build."""
    try:
        return to_mathml(html)
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error

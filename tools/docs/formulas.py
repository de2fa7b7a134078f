"""Formulas as MathML, which browsers show without a script or a font from elsewhere."""

import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_FUNCTION = re.compile(r"(?<!<msub>)(?<!<msup>)(?<!<munder>)(<mi>(?:log|exp|min|max)</mi>)(?!<mo)")
_SAID_OTHERWISE = {
    r"{aligned}": r"{split}",
    r"\bar{": r"\overline{",
    r"\bar ": r"\overline ",
}  # what the converter knows, or sets better
_NOT_READ = re.compile(r"<m[io]>(?:&|&amp;|\\[A-Za-z]+)</m[io]>")


def to_mathml(html: str) -> str:
    """The page with each formula between `$` as MathML.

    Args:
        html: a page as `pymdownx.arithmatex` leaves it, formulas as LaTeX in elements of its class.

    Raises:
        ValueError: for a formula that holds what cannot be said in MathML.
    """
    return _FORMULA.sub(_converted, html)


def _converted(match: re.Match[str]) -> str:
    latex = _unescape(match[3]).strip()
    for said, other in _SAID_OTHERWISE.items():
        latex = latex.replace(said, other)
    mathml = convert(latex, display="block" if match[2] == "[" else "inline")
    left = _NOT_READ.search(mathml)
    if left:
        raise ValueError(f"a formula must be LaTeX that latex2mathml knows, got {left[0]} of {latex}")
    mathml = _FUNCTION.sub(r'\1<mspace width="0.167em" />', mathml)
    return f'<div class="formula">{mathml}</div>' if match[2] == "[" else mathml


def _unescape(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")

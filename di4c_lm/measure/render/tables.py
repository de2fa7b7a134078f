"""Rows as plain text: tables for a terminal, and numbers in few characters."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from di4c_lm.measure.render.pictures import Row, is_beaten

Column: TypeAlias = tuple[str, Callable[[Row], str]]
"""Heading, and the cell of a row."""

LEAD: tuple[Column, ...] = (
    ("model", lambda row: str(row["model"])),
    ("steps", lambda row: str(row["steps"] or "-")),
)
NFE: Column = ("NFE", lambda row: f"{row['nfe']:.4g}" if row["steps"] else "-")


def star(row: Row, metric: str) -> str:
    """What stands behind a number that counting beats."""
    return "*" if is_beaten(row, metric) else ""


def star_said(rows: Sequence[Row]) -> str:
    """A line that says what the stars are, where there are any."""
    return "\n*: beaten by counting (hollow in the picture)" if any(star(row, "gen_ppl") for row in rows) else ""


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A line a row under the columns' headings; nothing for no rows."""
    return aligned([head for head, _ in columns], [[cell(row) for _, cell in columns] for row in rows]) if rows else ""


def aligned(head: list[str], lines: list[list[str]]) -> str:
    """Columns of equal width: the first to the left, the others to the right, under a rule."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in (head, rule, *lines)
    )


def with_differences(text: str, comparisons: Sequence[Row], names: Mapping[str, str] | None = None) -> str:
    """`text`, and below it the tested differences, if there are any; `names` are what metrics are called."""
    columns: tuple[Column, ...] = (
        ("difference", lambda c: f"{c['of']} - {c['minus']}"),
        ("steps", lambda c: f"{c['steps']} - {c['minus_steps']}" if "minus_steps" in c else str(c["steps"])),
        ("metric", lambda c: (names or {}).get(c["metric"], str(c["metric"]))),
        ("value", lambda c: f"{c['difference']:+.3g}"),
        ("95 %", lambda c: f"{c['difference_low']:+.3g} to {c['difference_high']:+.3g}"),
        ("p", lambda c: f"{c['p_value']:.3g}"),
    )
    return f"{text}\n\n{table(comparisons, columns)}" if comparisons else text


def with_detectable(text: str, rows: Sequence[Row]) -> str:
    """`text`, and below it a line on the smallest differences that the samples can show; `rows` as `measure.flow.detectable` has them."""
    if not rows:
        return text
    spans = [dict.fromkeys(short(row[end]) for end in ("smallest", "largest")) for row in rows]
    said = [f"{row['metric']} {' to '.join(span)}" for row, span in zip(rows, spans, strict=True)]
    how = f"{100 * rows[0]['power']:.0f} % of the time at the level {100 * rows[0]['level']:.0f} %"
    return f"{text}\n\nsmallest differences that these samples show, {how}: {', '.join(said)}"


def short(value: int | float) -> str:
    """A number in as few characters as tell it."""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"

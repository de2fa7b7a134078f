"""How the cost of a training step and of a sampling call grows with each size, ours beside the plain way:

    di4c bench scaling [of=D,L,S,H,B,ranks] [doublings=3] [out=scaling.png] [--json]

From the sizes that are given, one size at a time is doubled `doublings` times; each point is measured by `di4c bench loss`, `sampling` or
`zero` in processes of its own. The exponent of a curve is the slope of a line through its last three points, both axes logarithmic.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from di4c_lm.core.compose import parse
from di4c_lm.core.settings import at_least, check, section, setting
from di4c_lm.core.terminal import errors_end
from di4c_lm.runs.bench.frame import BenchSettings, run_apart

_SIZES = ("D", "L", "S", "H", "B", "ranks")
_COSTS = {  # by kind of work: what is measured, and under which names
    "training step": ("loss", ("lean", "plain"), {"seconds": "seconds", "peak_gib_above_models": "GiB"}),
    "sampling call": ("sampling", ("fast", "plain"), {"seconds_per_step": "seconds"}),
    "rank of a training step": ("zero", ("0", "3"), {"seconds_per_step": "seconds", "peak": "GiB"}),
}
_FITTED = 3  # points at the end of a curve


@section
class Settings(BenchSettings):
    """Time and memory of a training step and of a sampling call against each size, with fitted exponents."""

    of: str = setting("D,L,S,H,B,ranks", "sizes that are doubled, with commas between")
    doublings: int = setting(3, "how often each is doubled")
    threads: int = setting(1, "CPU threads of each process")
    D: int = setting(64, "positions in a sequence, to begin with")
    L: int = setting(2, "samples of λ per sequence, to begin with")
    S: int = setting(2048, "states, to begin with")
    H: int = setting(64, "width of the network, to begin with")
    B: int = setting(1, "sequences in a batch, to begin with")
    ranks: int = setting(1, "processes of a training step under ZeRO, to begin with")
    blocks: int = setting(2, "blocks of the network")
    heads: int = setting(2, "attention heads")
    out: str = setting("scaling.png", "file of the picture; empty: none")

    def __post_init__(self) -> None:
        check(set(self.sizes) <= set(_SIZES), "of", self.of, f"some of {','.join(_SIZES)}")
        check(not self.out or self.out.endswith(".png"), "out", self.out, "a file whose name ends in .png")
        at_least(self, 2, "doublings")

    @property
    def sizes(self) -> list[str]:
        """Those that are doubled."""
        return self.of.split(",")


def points(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row for each curve and point: what is measured, which way, the size that is doubled, its value, and what it costs."""
    base = {name: getattr(settings, name) for name in (*_SIZES, "blocks", "heads")}
    for size in settings.sizes:
        for work, (bench, ways, costs) in _COSTS.items():
            if (size == "ranks") != (bench == "zero") or (size == "L" and bench == "sampling"):
                continue
            known = [name for name in base if name != "ranks" or bench == "zero"]
            known = [name for name in known if name != "L" or bench != "sampling"]
            for value in (base[size] << n for n in range(settings.doublings + 1)):
                words = [f"{name}={value if name == size else base[name]}" for name in known]
                for way in ways:
                    found = _measured(bench, way, words, settings, ranks=value if size == "ranks" else 1)
                    yield {"work": work, "way": way, "size": size, "value": value} | {
                        ours: found[theirs] for theirs, ours in costs.items()
                    }


def _measured(bench: str, way: str, words: Sequence[str], settings: Settings, *, ranks: int) -> dict[str, Any]:
    """What `di4c bench <bench>` finds of one way, in processes of its own."""
    about = [f"threads={settings.threads}", f"device={settings.device}", f"repeat={settings.repeat}"]
    command = [sys.executable, "-m", "di4c_lm", "bench", bench, "--way", way, *words, *about]
    return run_apart(command, f"{bench} {' '.join(words)} {way}", settings, count=ranks)


def exponent(values: Sequence[int], costs: Sequence[float]) -> float:
    """The slope of log cost against log size, through the last three points.

    Examples:
        >>> exponent([1, 2, 4, 8], [1.0, 4.0, 16.0, 64.0])
        2.0
    """
    x, y = np.log(values[-_FITTED:]), np.log(costs[-_FITTED:])
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def curves(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each work, way, size and cost the points, and the exponent."""
    found: dict[tuple[str, ...], list[tuple[int, float]]] = {}
    for row in rows:
        for cost in ("seconds", "GiB"):
            if cost in row:
                found.setdefault((row["size"], row["work"], cost, row["way"]), []).append((row["value"], row[cost]))
    return [
        {
            "size": size,
            "work": work,
            "cost": cost,
            "way": way,
            "values": [v for v, _ in at],
            "costs": [c for _, c in at],
        }
        | {"exponent": exponent(*zip(*at, strict=True))}
        for (size, work, cost, way), at in found.items()
    ]


def draw(found: Sequence[dict[str, Any]], path: str) -> None:
    """All curves, a column a size, a line a work and cost, ours beside the plain way."""
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(one["size"] for one in found))
    lines = list(dict.fromkeys((one["work"], one["cost"]) for one in found))
    figure = Figure(figsize=(2.6 * len(sizes), 2.2 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), len(sizes), squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for one in found:
        axis = axes[lines.index((one["work"], one["cost"]))][sizes.index(one["size"])]
        axis.set_visible(True)
        axis.loglog(one["values"], one["costs"], marker="o", label=f"{one['way']}: {one['size']}^{one['exponent']:.2f}")
        axis.set_title(f"{one['work']}, {one['cost']}", fontsize=7)
        axis.set_xlabel(one["size"], fontsize=7)
        axis.tick_params(labelsize=6)
        axis.legend(fontsize=6)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str]) -> int:
    """Measure, print the exponents, and draw; the exit status. Bad input ends the program with 2."""
    settings = parse(Settings, argv, program="di4c bench scaling")
    with errors_end():
        rows = list(points(settings))
        found = curves(rows)
        if settings.out:
            draw(found, settings.out)
    for one in found:
        costs = ", ".join(f"{cost:.3g}" for cost in one["costs"])
        print(f"{one['size']:6}{one['work']:26}{one['cost']:9}{one['way']:7}exponent {one['exponent']:6.2f}   {costs}")
    if settings.json:
        print(json.dumps({"rows": rows, "curves": found}))
    return 0

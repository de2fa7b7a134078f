"""The kinds of golden case: how one is recognised, computed and judged."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

from safetensors import SafetensorError

from tests.parity import (
    lm_dit,
    lm_loss,
    lm_sampling,
    maskgit_loss,
    maskgit_net,
    maskgit_sampling,
    tauldr_loss,
    tauldr_net,
    tauldr_transition,
    vqgan,
)
from tests.parity.golden import Computed, Golden, Row, compare

UNREADABLE = (BadZipFile, EOFError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)


class Kind(NamedTuple):
    """How a kind of case is computed, which of its arrays are inputs, and an array that none of the kinds after it holds."""

    compute: Callable[[Golden], Iterable[Computed]]
    inputs: tuple[str, ...]
    mark: str


KINDS = {
    "lm_dit": Kind(lm_dit.compute, lm_dit.INPUTS, "sigma_map_out"),
    "lm_loss": Kind(lm_loss.compute, lm_loss.INPUTS, "logits_student_raw"),
    "lm_sampling": Kind(lm_sampling.compute, lm_sampling.INPUTS, "samplet_u"),
    "maskgit_denoise": Kind(maskgit_sampling.compute_denoise, maskgit_sampling.DENOISE_INPUTS, "pred_code"),
    "maskgit_loss": Kind(maskgit_loss.compute, maskgit_loss.INPUTS, "logits_student_teacher"),
    "maskgit_net": Kind(maskgit_net.compute, maskgit_net.INPUTS, "drop_label"),
    "maskgit_schedules": Kind(maskgit_sampling.compute_schedules, maskgit_sampling.SCHEDULES_INPUTS, "grid_r"),
    "tauldr_loss": Kind(tauldr_loss.compute, tauldr_loss.INPUTS, "logits_teacher_mint"),
    "tauldr_net": Kind(tauldr_net.compute, tauldr_net.INPUTS, "net_out_ema"),
    "tauldr_transition": Kind(tauldr_transition.compute, tauldr_transition.INPUTS, "base_rate"),
    "vqgan": Kind(vqgan.compute, vqgan.INPUTS, "prequant"),
}


@dataclass(frozen=True)
class Verdict:
    """What became of one case: `result` is ok, FAILED or not computed."""

    case: str
    result: str
    rows: tuple[Row, ...] = ()
    remark: str = ""


def kind_of(golden: Golden) -> Kind | None:
    """The kind that the file's name begins with, whatever size or variant follows; else the first whose mark it holds."""
    for name, kind in KINDS.items():
        if golden.path.stem.startswith(name):
            return kind
    return next((kind for kind in KINDS.values() if kind.mark in golden.arrays), None)


def check(golden: Golden) -> Verdict:
    """Compute a case and compare every array of it; a file that cannot be read fails."""
    rows: list[Row] = []
    try:
        kind = kind_of(golden)
        if kind is None:
            return Verdict(golden.name, "not computed")
        rows.extend(compare(golden, computed) for computed in kind.compute(golden))
        known = {row.array for row in rows}
        left = [
            name
            for name in golden.arrays
            if name not in known and not any(fnmatchcase(name, pattern) for pattern in kind.inputs)
        ]
    except UNREADABLE as error:
        return Verdict(golden.name, "FAILED", tuple(rows), f"{type(error).__name__}: {error}")
    ok = bool(rows) and all(row.ok for row in rows)
    remark = f"not computed: {' '.join(left)}" if left else ""
    return Verdict(golden.name, "ok" if ok else "FAILED", tuple(rows), remark)


def check_folder(folder: Path) -> Iterator[Verdict]:
    """The verdicts on every `.npz` below a folder, in the order of their paths."""
    for path in sorted(folder.rglob("*.npz")):
        yield check(Golden(path, path.relative_to(folder).with_suffix("").as_posix()))

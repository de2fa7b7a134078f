"""Compare our losses, networks and samplers with golden files of the reference: python tools/check_parity.py [DIR]

DIR holds `.npz` cases (default `$DI4C_SHARED/golden`). Prints a table of errors, then a line a case: ok, FAILED or not computed.
Exit code 1 if any case failed, 2 if there is nothing to read.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

from parity import (
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
from parity.golden import Computed, Golden, Row, compare
from safetensors import SafetensorError


class Case(NamedTuple):
    """How a kind of case is computed, and which of its arrays are given."""

    compute: Callable[[Golden], Iterable[Computed]]
    inputs: tuple[str, ...]


CASES = {
    "lm_dit": Case(lm_dit.compute, lm_dit.INPUTS),
    "lm_dit_di4c": Case(lm_dit.compute, lm_dit.INPUTS),
    "lm_loss": Case(lm_loss.compute, lm_loss.INPUTS),
    "lm_sampling": Case(lm_sampling.compute, lm_sampling.INPUTS),
    "maskgit_denoise": Case(maskgit_sampling.compute_denoise, maskgit_sampling.DENOISE_INPUTS),
    "maskgit_loss": Case(maskgit_loss.compute, maskgit_loss.INPUTS),
    "maskgit_net": Case(maskgit_net.compute, maskgit_net.INPUTS),
    "maskgit_net_student": Case(maskgit_net.compute, maskgit_net.INPUTS),
    "maskgit_schedules": Case(maskgit_sampling.compute_schedules, maskgit_sampling.SCHEDULES_INPUTS),
    "tauldr_loss": Case(tauldr_loss.compute, tauldr_loss.INPUTS),
    "tauldr_net": Case(tauldr_net.compute, tauldr_net.INPUTS),
    "tauldr_net_lam": Case(tauldr_net.compute, tauldr_net.INPUTS),
    "tauldr_transition_S16": Case(tauldr_transition.compute, tauldr_transition.INPUTS),
    "tauldr_transition_S256": Case(tauldr_transition.compute, tauldr_transition.INPUTS),
    "vqgan": Case(vqgan.compute, vqgan.INPUTS),
}

UNREADABLE = (BadZipFile, EOFError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)


def check(golden: Golden, case: Case) -> tuple[list[Row], list[str], str]:
    """The table's rows of one case, the arrays that are neither inputs nor computed, and what went wrong, if it did."""
    rows = []
    try:
        rows.extend(compare(golden, computed) for computed in case.compute(golden))
        known = {row.array for row in rows}
        left = [
            name
            for name in golden.arrays
            if name not in known and not any(fnmatchcase(name, pattern) for pattern in case.inputs)
        ]
    except UNREADABLE as error:
        return rows, [], f"{type(error).__name__}: {error}"
    return rows, left, ""


def print_table(rows: list[Row]) -> None:
    """The errors, one line an array."""
    widths = (max([len(row.case) for row in rows] + [4]), max([len(row.array) for row in rows] + [5]))
    print(f"{'case':{widths[0]}}  {'array':{widths[1]}}  {'abs error':>9}  {'rel error':>9}  {'tolerance':22}  ok")
    for row in rows:
        errors = f"{row.abs_error:9.2e}  {row.rel_error:9.2e}"
        verdict = "ok" if row.ok else "FAILED"
        note = f"  {row.note}" if row.note else ""
        print(f"{row.case:{widths[0]}}  {row.array:{widths[1]}}  {errors}  {row.tolerance!s:22}  {verdict}{note}")


def main() -> int:
    """Check every case file of a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", nargs="?", type=Path, help="folder of .npz cases (default: $DI4C_SHARED/golden)")
    folder = parser.parse_args().folder
    if folder is None:
        if "DI4C_SHARED" not in os.environ:
            parser.error("name a folder of golden files, or set DI4C_SHARED to the folder that holds golden/")
        folder = Path(os.environ["DI4C_SHARED"]) / "golden"
    files = sorted(folder.glob("*.npz"))
    if not files:
        parser.error(f"no .npz file in {folder}")
    table: list[Row] = []
    verdicts, remarks, failed = [], [], False
    for golden in map(Golden, files):
        case = CASES.get(golden.name)
        if case is None:
            verdicts.append(f"{golden.name} not computed")
            continue
        rows, left, error = check(golden, case)
        table += rows
        ok = bool(rows) and not error and all(row.ok for row in rows)
        failed |= not ok
        verdicts.append(f"{golden.name} {'ok' if ok else 'FAILED'}")
        remarks += [f"{golden.name}: not computed: {' '.join(left)}"] if left else []
        remarks += [f"{golden.name}: {error}"] if error else []
    print_table(table)
    print("\n".join(["", *remarks, *verdicts]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

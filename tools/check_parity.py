"""Compare our losses, networks and samplers with golden files of the reference: python tools/check_parity.py [DIR] [--json]

DIR holds `.npz` cases (default `$DI4C_SHARED/golden`), each recognised by how its name begins or by its arrays. Prints a table of errors,
then a line a case: ok, FAILED or not computed; with --json last a line `{"cases": {name: result}, "failed": F, "not_computed": N}`.
Exit code 1 if any case failed, 2 if there is nothing to read.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.parity.golden import Row
from tests.parity.kinds import check_folder


def print_table(rows: Sequence[Row]) -> None:
    """The errors, one line an array."""
    widths = (max([len(row.case) for row in rows] + [4]), max([len(row.array) for row in rows] + [5]))
    print(f"{'case':{widths[0]}}  {'array':{widths[1]}}  {'abs error':>9}  {'rel error':>9}  {'tolerance':22}  ok")
    for row in rows:
        errors = f"{row.abs_error:9.2e}  {row.rel_error:9.2e}"
        verdict = "ok" if row.ok else "FAILED"
        note = f"  {row.note}" if row.note else ""
        print(f"{row.case:{widths[0]}}  {row.array:{widths[1]}}  {errors}  {row.tolerance!s:22}  {verdict}{note}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every case file of a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", nargs="?", type=Path, help="folder of .npz cases (default: $DI4C_SHARED/golden)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args(arguments)
    if asked.folder is None and "DI4C_SHARED" not in os.environ:
        parser.error("name a folder of golden files, or set DI4C_SHARED to the folder that holds golden/")
    folder = asked.folder or Path(os.environ["DI4C_SHARED"]) / "golden"
    verdicts = list(check_folder(folder))
    if not verdicts:
        parser.error(f"no .npz file in {folder}")
    print_table([row for verdict in verdicts for row in verdict.rows])
    print("\n".join(["", *(f"{verdict.case}: {verdict.remark}" for verdict in verdicts if verdict.remark)]))
    print("\n".join(f"{verdict.case} {verdict.result}" for verdict in verdicts))
    results = [verdict.result for verdict in verdicts]
    if asked.json:
        cases = {verdict.case: verdict.result for verdict in verdicts}
        print(
            json.dumps(
                {"cases": cases, "failed": results.count("FAILED"), "not_computed": results.count("not computed")}
            )
        )
    return 1 if "FAILED" in results else 0


if __name__ == "__main__":
    sys.exit(main())

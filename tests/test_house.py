"""The order of the house: few rooms, imports that run one way, and the core free of heavy frameworks."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Ground floor first: a room imports rooms above it in this list alone.
FLOORS = (
    "core",
    "processes",
    "losses",
    "data",
    "networks",
    "mixtures",
    "objectives",
    "samplers",
    "training",
    "checkpoints",
    "measure",
    "domains",
    "runs",
)
DOORS = ("launch", "eval", "tools")


def room_of(path: Path) -> str:
    """The package of `di4c_lm`, or the top-level folder, that holds a file."""
    parts = path.relative_to(ROOT).parts
    return parts[1].removesuffix(".py") if parts[0] == "di4c_lm" else parts[0]


def imported_rooms(path: Path) -> Iterator[str]:
    """The rooms that a file imports from, imports inside functions among them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
            names += [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "di4c_lm" else []
        for name in names:
            parts = name.split(".")
            if parts[0] == "di4c_lm" and len(parts) > 1 and parts[1] != "__main__":  # the command leads to all rooms
                yield parts[1]


def arrows() -> set[tuple[str, str]]:
    """Pairs (importer, imported) of different rooms."""
    found: set[tuple[str, str]] = set()
    for folder in ("di4c_lm", *DOORS):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.parent.name != "di4c_lm":  # not the public face and the command, which lead to all rooms
                found |= {(room_of(path), room) for room in imported_rooms(path)}
    return {(importer, imported) for importer, imported in found if importer != imported}


def test_there_are_at_most_sixteen_rooms() -> None:
    rooms = {path.name for path in (ROOT / "di4c_lm").iterdir() if path.is_dir() and path.name != "__pycache__"}
    loose = {path.name for path in (ROOT / "di4c_lm").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert rooms == set(FLOORS) and not loose
    assert len(rooms) + len(DOORS) <= 16


def test_imports_run_one_way() -> None:
    height = {room: floor for floor, room in enumerate((*FLOORS, *DOORS))}
    upward = sorted(f"{a} -> {b}" for a, b in arrows() if height[b] >= height[a])
    assert not upward


def test_there_are_at_most_75_arrows_between_rooms() -> None:
    assert len(arrows()) <= 75


@pytest.mark.parametrize("room", ["processes", "losses", "samplers"])
def test_the_mathematics_knows_no_domain(room: str) -> None:
    assert {imported for importer, imported in arrows() if importer == room} <= {"core", "processes"}


def test_the_engine_alone_imports_deepspeed() -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "di4c_lm").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deepspeed")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "deepspeed" for alias in node.names))
    }
    probe = "di4c_lm/runs/doctor/machine.py"  # asks it what this machine can build
    assert importers <= {"di4c_lm/training/engine.py", "di4c_lm/training/zero.py", probe}

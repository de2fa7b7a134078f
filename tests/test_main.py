"""The command `di4c`: its words, its doors, and what it says of words that there are not."""

import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from di4c_lm import __version__
from di4c_lm.__main__ import Command, commands, main
from di4c_lm.core.terminal import EXTRAS

ROOT = Path(__file__).parents[1]
DOORS = [path for folder in ("launch", "eval", "tools") for path in sorted((ROOT / folder).glob("*.py"))]
THIN = [path for path in DOORS if "di4c_lm.__main__" in path.read_text(encoding="utf-8")]


def words(below: Mapping[str, Command], said: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    for name, command in below.items():
        if command.module:
            yield (*said, name), command
        yield from words(command.below, (*said, name))


@pytest.mark.parametrize(
    "said, command", [*words(commands())], ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_word_leads_to_a_main_that_helps(
    said: tuple[str, ...], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(importlib.import_module(command.module).main) and command.help
    with pytest.raises(SystemExit) as end:
        main([*said, "--help"])
    assert end.value.code == 0
    assert f"usage: di4c {' '.join(said)}" in capsys.readouterr().out


@pytest.mark.parametrize("said", [[], ["--help"], ["eval"], ["prepare", "-h"], ["bench"]])
def test_a_word_that_needs_another_lists_them(said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(said) == 0
    below = commands()[said[0]].below if said and said[0] in commands() else commands()
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and command.help in shown for name, command in below.items())


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"di4c-lm {__version__}\n"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (["smaple"], "di4c: there is no 'smaple'; did you mean sample?"),
        (["eval", "music"], "di4c eval: there is no 'music'; there are gen_ppl,"),
        (["train", "musik"], "di4c train: there is no 'musik'; there are text, cifar10, imagenet"),
        (["train", "steps=3"], "there is no key steps"),
        (["train", "--nproc", "none"], "--nproc must be a whole number of at least 1, got 'none'"),
        (["train", "--nproc"], "--nproc must be a whole number of at least 1, got ''"),
    ],
)
def test_a_word_that_there_is_not_ends_with_status_2(
    said: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(said)
    assert end.value.code == 2
    assert told in capsys.readouterr().err


def test_several_processes_are_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def execv(program: str, command: list[str]) -> None:
        started.append(command)
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", execv)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit):
        main(["train", "cifar10", "--nproc", "3", "train.steps=1"])
    assert started[0][3:6] == ["--num_gpus", "3", "--master_port"]
    assert started[0][7:] == ["--no_local_rank", "--module", "di4c_lm", "train", "cifar10", "train.steps=1"]
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as end:
        main(["train", "--nproc", "3"])
    assert end.value.code == 2 and len(started) == 1


def test_as_many_processes_as_gpus_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from di4c_lm.runs import command

    started: list[int] = []
    monkeypatch.setattr(command, "_launch", lambda processes, words: started.append(processes))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("RANK", raising=False)
    assert command.launch_if_asked(("train",), ["a=1"]) == ["a=1"]
    assert command.launch_if_asked(("train",), ["--nproc=1", "a=1"]) == ["a=1"]
    assert started == [4]


def test_the_doors_are_thin_and_each_leads_to_a_word() -> None:
    assert len(THIN) == 29
    for path in THIN:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 8, path
    assert all("launch" in str(path) or path in THIN for path in DOORS if path.parent.name != "tools")


@pytest.mark.parametrize("door", ["launch/train_cifar10.py", "eval/cost.py", "tools/bench_loss.py", "tools/sample.py"])
def test_a_door_opens(door: str) -> None:
    done = subprocess.run([sys.executable, door, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("usage: di4c "), done.stderr


def test_help_takes_no_time() -> None:
    code = "import sys\nfrom di4c_lm.__main__ import main\nmain(['--help'])\nassert not {'torch', 'numpy', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)


def test_what_an_extra_brings_is_named_where_it_is_absent(tmp_path: Path) -> None:
    code = "import sys\nsys.modules['deepspeed'] = None\nfrom di4c_lm.__main__ import main\nmain(['train', 'train.steps=1'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: deepspeed is not installed: the extra [train] of di4c-lm brings it" in done.stderr.splitlines()[-1]
    assert not [*tmp_path.iterdir()]


def test_the_extras_bring_the_modules_that_are_named() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    packages = {"sklearn": "scikit-learn", "mauve": "mauve-text"}
    for module, extra in EXTRAS.items():
        package = packages.get(module, module.replace("_", "-"))
        assert any(line.startswith(package) for line in extras[extra]), (module, extra)

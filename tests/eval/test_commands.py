"""Every word after `di4c eval`: help that explains each key, and bad arguments that end with status 2."""

import pytest

from di4c_lm.__main__ import main
from di4c_lm.core.settings import fields
from di4c_lm.domains.text import domain
from di4c_lm.measure.text.suite import ReportConfig

EVALUATIONS = (
    "report",
    "diversity",
    "distribution",
    "likelihood",
    "mixture",
    "cost",
    "brier",
    "frontier",
    "compare_reports",
)


def measure(name: str, *arguments: str) -> int:
    return main(["eval", name, *arguments])


@pytest.mark.parametrize("name", EVALUATIONS)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        measure(name, "--help")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: di4c eval {name} [key=value ...]")


def test_the_help_of_the_report_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        measure("report", "--help")
    lines = capsys.readouterr().out.splitlines()
    for name, field in fields(ReportConfig).items():
        assert any(line.startswith(f"  {name}=") and line.endswith(field.help) for line in lines), name
        assert field.help, name


@pytest.mark.parametrize(
    "name, part",
    [
        ("cost", "cost"),
        ("likelihood", "likelihood"),
        ("brier", "brier"),
        ("frontier", "frontier"),
        ("diversity", "diversity"),
    ],
)
def test_a_part_alone_is_measured(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ReportConfig] = []
    monkeypatch.setattr(domain, "suite", lambda settings: seen.append(settings) or "table")
    assert measure(name, "steps=[3]") == 0
    assert part in seen[0].parts and "mixture" not in seen[0].parts and seen[0].steps == (3,)


@pytest.mark.parametrize(
    "argument, told",
    [
        ("num_samples=0", ["num_samples", "0", "at least 8"]),
        ("steps=[]", ["steps", "at least 1"]),
        ("seeds=[1,1]", ["seeds", "distinct"]),
        ("parts=[fluency,speed]", ["parts", "speed", "likelihood"]),
        ("permutations=5", ["permutations", "5", "at least 19"]),
        ("lambdas=1", ["lambdas", "1", "at least 2"]),
        ("self_bleu_samples=1", ["self_bleu_samples", "at least 2"]),
        ("noise=float16", ["noise", "'float16'"]),
        ("evaluator=gpt2", ["evaluator", "evaluators"]),
        ("run=/absent", ["/absent", "student/model.safetensors"]),
    ],
)
def test_bad_arguments_end_with_status_2(argument: str, told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        measure("report", argument)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "error: " in error and all(part in error for part in told), error


def test_files_that_do_not_compare_end_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        measure("compare_reports", "files=[/absent.json,/other.json]")
    assert end.value.code == 2 and "/absent.json" in capsys.readouterr().err

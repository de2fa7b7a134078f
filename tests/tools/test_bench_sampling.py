"""The benchmark of sampling: what it prints, and what it refuses."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_sampling.py"
SMALL = ("steps=3", "D=8", "B=2", "S=40", "H=16", "blocks=2", "heads=2", "threads=1", "device=cpu")


sys.path.insert(0, str(TOOL.parent))
tool = importlib.import_module("bench_sampling")


def test_the_last_line_is_one_object_below_a_table() -> None:
    command = [sys.executable, str(TOOL), *SMALL, "latent=token", "--json"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    found = json.loads(lines[-1])
    assert list(found) == ["fast", "plain"]
    for measured in found.values():
        assert set(measured) == {"seconds_per_step", "tokens_per_s", "nfe"}
        assert measured["tokens_per_s"] == pytest.approx(2 * 8 / (3 * measured["seconds_per_step"]))
    assert 0 < found["fast"]["nfe"] <= 3 <= found["plain"]["nfe"]
    assert [line.split()[0] for line in lines[:-1]] == ["fast", "seconds_per_step", "tokens_per_s", "nfe"]


@pytest.mark.parametrize("latent", ["codes", "classes"])
def test_what_lambda_costs_is_told_beside_the_same_network_without_it(latent: str) -> None:
    settings = tool.Settings.parse([*SMALL, f"latent={latent}", "classes=5"])
    found = {way: tool.measure(way, settings) for way in ("fast", "teacher")}
    assert all(measured["seconds_per_step"] > 0 for measured in found.values())
    assert (
        tool.build(settings, None).latent is None and tool.build(settings, tool.latent_of(settings)).latent is not None
    )


@pytest.mark.parametrize("wrong", ["depth=3", "D", "D=many", "steps=0", "latent=maybe", "ways=slow", "device=tpu"])
def test_a_setting_that_cannot_be_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.split("=")[-1]):
        tool.Settings.parse([wrong])


def test_settings_survive_the_way_to_another_process() -> None:
    settings = tool.Settings.parse([*SMALL, "latent=codes", "ways=fast"])
    assert tool.Settings.parse(settings.assignments()) == settings

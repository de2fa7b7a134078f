"""A new domain is one folder, or as here one file: it trains, samples and reports by the same recipe, and nothing else knows of it."""

import json
import subprocess
from pathlib import Path

import pytest

from di4c_lm.domains.domain import DOMAINS, Data, Domain, FinishedRun, Model, find_domain
from di4c_lm.runs import recipe
from di4c_lm.training.settings import RunConfig, TrainConfig
from tests.domains.toy import DOMAIN, LENGTH, STATES, ToyModel, ToySettings

ROOT = Path(__file__).parents[2]


def test_the_toy_fulfils_the_contract_and_so_do_the_three(tmp_path: Path) -> None:
    assert isinstance(DOMAIN, Domain)
    for name in DOMAINS:
        domain = find_domain(name)
        assert isinstance(domain, Domain) and domain.name == name
    world = recipe.init_distributed("cpu")
    data = DOMAIN.data(ToySettings(), world, tmp_path)
    assert isinstance(data, Data)
    assert isinstance(DOMAIN.wrap(DOMAIN.network(ToySettings(), data), ToySettings(), data), Model)
    with pytest.raises(ValueError, match="domain must be one of text, cifar10, imagenet, got 'toys'"):
        find_domain("toys")


def test_a_toy_run_is_found_sampled_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DOMAINS, "toy", "tests.domains.toy")
    run = RunConfig(dir=str(tmp_path / "run"), cache_dir=str(tmp_path / "cache"), device="cpu", threads=1)
    train = TrainConfig(steps=1, micro_batch_size=4, save_every=0)
    assert recipe.run(DOMAIN, ToySettings(run=run, train=train)) == 0
    finished = FinishedRun.read(tmp_path / "run")
    x = ToyModel.from_pretrained(finished.models["student"]).sample(5, 2, seed=0)
    assert x.shape == (5, LENGTH) and int(x.max()) < STATES
    rows = json.loads((finished.folder / "report" / "toy.json").read_text())["rows"]
    assert all(0 <= row["counted"] <= 1 for row in rows)


def test_no_other_file_knows_of_the_toy() -> None:
    tracked = subprocess.run(["git", "grep", "-il", "toy domain\\|ToyDomain"], cwd=ROOT, capture_output=True, text=True)
    assert not [name for name in tracked.stdout.splitlines() if not name.startswith("tests/")]

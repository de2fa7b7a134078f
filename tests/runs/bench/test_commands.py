"""Each benchmark at a size that takes a moment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from di4c_lm.__main__ import main
from di4c_lm.domains.text.model import TextModel
from di4c_lm.runs.bench import scaling
from tests.tools.helpers import run_tool

NETWORK = ("H=16", "blocks=2", "heads=2", "threads=1", "device=cpu")


def measured(name: str, *arguments: str) -> dict[str, dict]:
    done = run_tool(name, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("more", [(), ("path=adaln", "inject_at=1", "matmul=bf16", "repeat=2")])
def test_loss(more: tuple[str, ...]) -> None:
    found = measured("bench_loss", "D=8", "L=2", "B=2", "S=40", *NETWORK, *more)
    for way in ("lean", "plain"):
        phases = found[way]["phases"]
        assert set(phases) == {"teacher sampling", "student on x_u", "student on x_t", "loss", "backward"}
        assert all(seconds > 0 for seconds in phases.values())
        assert sum(phases.values()) == pytest.approx(found[way]["seconds"], rel=1e-6)
        assert found[way]["peak_gib_above_models"] >= 0
    assert found["ratio"]["seconds"] == pytest.approx(found["lean"]["seconds"] / found["plain"]["seconds"])


def test_images() -> None:
    size = ("L=2", "B=2", "size=4", "channels=1", "S=8", "width=4", "multipliers=[1]", "blocks=1")
    found = measured("bench_images", *size, "threads=1", "device=cpu")
    assert list(found) == ["lean", "plain"]
    for way in found.values():
        assert set(way["phases"]) > {"teacher sampling", "student on x_u", "distillation", "backward"}
        assert min(way["phases"].values()) > 0
        assert way["value"] == way["value"]


def test_sampling() -> None:
    found = measured("bench_sampling", "steps=3", "D=8", "B=2", "S=40", *NETWORK, "mixture=token")
    assert list(found) == ["fast", "plain"]
    for way in found.values():
        assert set(way) == {"seconds_per_step", "cpu_seconds_per_step", "tokens_per_s", "nfe"}
        assert way["tokens_per_s"] == pytest.approx(2 * 8 / (3 * way["seconds_per_step"]))
    assert 0 < found["fast"]["nfe"] <= 3 <= found["plain"]["nfe"]


@pytest.mark.parametrize(
    "words",
    [
        ("mixture=codes",),
        ("mixture=class_chain", "classes=5", "positions=revealed", "matmul=bf16", "at=0.7"),
        ("mixture=sequential", "candidates=5", "positions=revealed"),
        ("mixture=sequential", "sampler=left_to_right", "at=0.7"),
    ],
)
def test_what_lambda_costs_in_sampling(words: tuple[str, ...]) -> None:
    size = ("steps=2", "D=8", "B=1", "S=40", *NETWORK)
    found = measured("bench_sampling", *size, *words, "ways=fast,teacher")
    assert list(found) == ["fast", "teacher"]
    assert min(way["seconds_per_step"] for way in found.values()) > 0
    assert not any(word.startswith("at=") for word in words) or found["fast"]["nfe"] == 1


def test_the_former_name_of_a_key_is_refused_with_the_new_one() -> None:
    done = run_tool("bench_sampling", "latent=classes", "--json")
    assert done.returncode == 2
    assert "latent=classes is mixture=class_chain now" in done.stderr


def test_a_key_of_another_mixture_is_refused() -> None:
    done = run_tool("bench_sampling", "mixture=sequential", "classes=5")
    assert done.returncode == 2 and "classes must be left out where mixture=sequential" in done.stderr


def test_zero() -> None:
    size = ("S=20", "D=4", "B=1", "L=2", "steps=1", "ways=0,3", "ranks=2")
    found = measured("bench_zero", *size, *NETWORK)
    assert list(found) == ["0", "3"]
    assert found["3"]["parameters"] == found["0"]["parameters"] > 0
    for way in found.values():
        assert set(way) == {"parameters", "seconds_per_step", "state", "peak", "partition"}
        assert way["seconds_per_step"] > 0
    whole = found["0"]["parameters"] * 4 / 2**30
    assert found["0"]["partition"] == pytest.approx(whole)
    assert found["3"]["partition"] == pytest.approx(whole / 2, rel=0.01)


def test_loader(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"text {n} " * 40}) + "\n" for n in range(200)))
    arguments = ("tokenizer=train", "length=16", "batch_size=2", "batches=3", "repeat=1", "copies=1", "threads=1")
    found = measured("bench_loader", f"path={tmp_path / 'texts.jsonl'}", *arguments, "consumed=100")
    assert list(found) == ["prepare", "shards", "streaming"]
    assert found["prepare"]["megabytes"] > 0 and found["prepare"]["share_of_raw"] > 0
    assert found["shards"]["times_consumed"] == pytest.approx(found["shards"]["tokens_per_s"] / 100)


def test_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run_tool("bench_loader", f"path={tmp_path / 'none.jsonl'}")
    assert done.returncode == 2
    assert "none.jsonl" in done.stderr and "Traceback" not in done.stderr


def test_serving(texts: dict[str, TextModel], tmp_path: Path) -> None:
    texts["student"].save_pretrained(tmp_path)
    command = [sys.executable, "-m", "di4c_lm", "bench", "serving", f"model={tmp_path}", "steps=2", "num_samples=3"]
    done = subprocess.run([*command, "ways=2", "threads=1", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["2"]
    assert found["tokens_per_s"] == pytest.approx(2 * texts["student"].length / found["seconds_per_batch"])


def test_scaling_fits_what_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """Of costs that are known: a training step as D², a sampling call as D, a rank as the root of the ranks."""

    def cost(bench: str, way: str, words: list[str], settings: scaling.Settings, *, ranks: int) -> dict[str, float]:
        values = dict(word.split("=") for word in words)
        D = float(values["D"])
        if bench == "zero":
            return {"seconds_per_step": ranks**0.5, "peak": 1.0}
        return {"seconds": D**2, "peak_gib_above_models": D, "seconds_per_step": D}

    monkeypatch.setattr(scaling, "_measured", cost)
    out = tmp_path / "scaling.png"
    assert scaling.main(["of=D,ranks", f"out={out}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["curves"]
    exponents = {(one["size"], one["work"], one["cost"], one["way"]): one["exponent"] for one in found}
    assert (
        exponents["D", "training step", "seconds", "lean"] == exponents["D", "training step", "seconds", "plain"] == 2
    )
    assert exponents["D", "training step", "GiB", "lean"] == exponents["D", "sampling call", "seconds", "fast"] == 1
    assert exponents["ranks", "rank of a training step", "seconds", "3"] == 0.5
    assert out.read_bytes().startswith(b"\x89PNG")


def test_scaling_measures_each_point_in_processes_of_its_own() -> None:
    size = ("of=ranks", "doublings=2", "D=4", "S=20", "H=8", "blocks=1", "heads=1", "B=1", "out=")
    rows = scaling.points(scaling.parse(scaling.Settings, size, program="di4c bench scaling"))
    first = next(rows)
    assert (first["size"], first["value"], first["way"]) == ("ranks", 1, "0") and first["seconds"] > 0 < first["GiB"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["of=D,X"], "of must be some of D,L,S,H,B,ranks"),
        (["doublings=1"], "doublings must be at least 2"),
        (["out=a.svg"], "out must be a file whose name ends in .png"),
    ],
)
def test_scaling_refuses(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        scaling.main(words)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_features_are_read_in_place_of_the_teacher(capfd: pytest.CaptureFixture[str]) -> None:
    size = (
        "H=16",
        "blocks=1",
        "heads=2",
        "S=40",
        "D=8",
        "B=2",
        "codes=3",
        "threads=1",
        "device=cpu",
        "precision=float32",
    )
    assert main(["bench", "features", *size, "json=true"]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["cached"]["value"] == pytest.approx(found["teacher"]["value"], rel=1e-5)
    assert found["cached"]["kib_a_sequence"] > 0


def test_a_decoder_and_the_same_of_transformers(capfd: pytest.CaptureFixture[str]) -> None:
    size = ("H=16", "blocks=2", "heads=2", "S=40", "D=8", "B=2", "threads=1", "device=cpu", "backward=true")
    assert main(["bench", "decoder", *size, "json=true"]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["ours"]["value"] == pytest.approx(found["transformers"]["value"], rel=0.02)  # ours has no MASK

"""What only a process of its own can show: the launcher with two ranks, a kill and what it leaves, exit statuses."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from di4c_lm.domains.text.model import TextModel

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "model.hidden_size=16",
    "model.num_blocks=3",
    "model.num_heads=2",
    "model.cond_dim=8",
    "data.length=16",
    "data.vocab_size=300",
    "teacher.pretrain.steps=4",
    "teacher.pretrain.batch_size=4",
    "evaluator.hidden_size=16",
    "evaluator.num_blocks=1",
    "evaluator.num_heads=2",
    "evaluator.pretrain.steps=4",
    "mixture.codebook_size=8",
    "train.micro_batch_size=2",
    "train.log_every=1",
    "eval.steps=[1,2]",
    "eval.num_samples=8",
    "eval.bootstrap=50",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two hundred small documents."""
    path = tmp_path_factory.mktemp("text") / "docs.jsonl"
    rows = [{"text": f"document {i}: " + " ".join(str(i * k % 97) for k in range(1, 40))} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(text: Path, run_dir: Path, *words: str, ranks: int = 0) -> list[str]:
    """The words of a run: under the launcher with `ranks` of them, or for 0 as a plain script."""
    if ranks:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        start = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks), "--master_port", str(port)]
    else:
        start = [sys.executable]
    given = any(word.startswith("teacher=") for word in words)  # whose shape and training nobody says then
    tiny = [word for word in TINY if not (given and word.startswith(("model.", "teacher.")))]
    return [*start, "launch/train_lm.py", f"data={text}", *tiny, f"run.dir={run_dir}", *words]


def launch(text: Path, run_dir: Path, *words: str, ranks: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(text, run_dir, *words, ranks=ranks), cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def metrics_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished miniature of the default run on two ranks."""
    run_dir = tmp_path_factory.mktemp("runs") / "two"
    words = command(text, run_dir, "train.steps=4", "zero.stage=2")[2:]
    start = [sys.executable, "-m", "di4c_lm", "train", "--nproc", "2"]
    done = subprocess.run([*start, *words], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert "2 rank(s)" in done.stdout + done.stderr
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return run_dir


def test_the_journal_has_every_promised_number(finished: Path) -> None:
    rows = metrics_of(finished)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    promised = {
        "step",
        "loss",
        "distil",
        "consistency",
        "data_corr",
        "data_marginal",
        "lr",
        "grad_norm",
        "tokens_per_s",
    }
    assert all(promised <= row.keys() for row in rows)


def test_the_student_loads_without_deepspeed_and_writes(finished: Path) -> None:
    code = (
        "import sys; from di4c_lm.domains.text.model import TextModel\n"
        f"model = TextModel.from_pretrained({str(finished / 'student')!r})\n"
        "tokens, nfe = model.sample_tokens(3, 2, seed=0)\n"
        "assert tokens.shape == (3, 16) and int(tokens.max()) < model.denoiser.mask_id and nfe <= 2\n"
        "assert not {'deepspeed', 'datasets', 'wandb'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_report_has_its_rows_intervals_and_manifest(finished: Path) -> None:
    report = json.loads((finished / "report" / "gen_ppl.json").read_text())
    assert {(row["model"], row["steps"]) for row in report["rows"]} == {
        ("data", 0),
        ("teacher", 1),
        ("teacher", 2),
        ("student", 1),
        ("student", 2),
        ("ngram_2", 1),
        ("ngram_3", 1),
        ("ngram_5", 1),
        ("token_bigram", 1),
        ("token_bigram", 2),
    }
    for row in report["rows"]:
        assert row["gen_ppl_low"] <= row["gen_ppl"] <= row["gen_ppl_high"]
        assert row["entropy_low"] <= row["entropy"] <= row["entropy_high"]
        assert row["nfe"] <= row["steps"]
    assert report["manifest"]["commit"]
    assert (finished / "report" / "gen_ppl.png").stat().st_size > 5000
    assert (finished / "report" / "gen_ppl.csv").read_text().startswith("model,steps,nfe,gen_ppl")


def test_eval_repeats_the_closing_report(finished: Path, tmp_path: Path) -> None:
    words = [f"run={finished}", "steps=[1,2]", "num_samples=8", "bootstrap=50", "batch_size=3", f"report={tmp_path}"]
    subprocess.run([sys.executable, "eval/gen_ppl.py", *words], cwd=ROOT, check=True, capture_output=True)
    again = json.loads((tmp_path / "gen_ppl.json").read_text())["rows"]
    first = json.loads((finished / "report" / "gen_ppl.json").read_text())["rows"]
    for one, other in zip(first, again, strict=True):
        assert one["entropy"] == other["entropy"], "the same samples, whatever the batch size"
        assert one["gen_ppl"] == pytest.approx(other["gen_ppl"], rel=1e-5)


def test_the_conditional_form_runs(finished: Path, tmp_path: Path) -> None:
    words = [f"run={finished}", "steps=[2]", "conditional=true", "prompts=4", "continuations=2", f"report={tmp_path}"]
    subprocess.run([sys.executable, "eval/gen_ppl.py", *words], cwd=ROOT, check=True, capture_output=True)
    rows = json.loads((tmp_path / "gen_ppl_conditional.json").read_text())["rows"]
    counted = {"ngram_2", "ngram_3", "ngram_5", "token_bigram"}
    assert {row["model"] for row in rows} == {"teacher", "student", "data", *counted}


def test_one_rank_of_the_same_global_batch_has_the_same_losses(finished: Path, text: Path, tmp_path: Path) -> None:
    teacher = finished / "teacher"
    words = ["train.steps=4", "train.gradient_accumulation=2", "eval.skip=true", f"teacher={teacher}"]
    done = launch(text, tmp_path / "one", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    for one, two in zip(metrics_of(tmp_path / "one"), metrics_of(finished), strict=True):
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4, abs=1e-8), "a loss near zero is a difference of sums"


def test_a_killed_run_resumes_to_the_same_losses(finished: Path, text: Path, tmp_path: Path) -> None:
    teacher = finished / "teacher"
    words = ["train.steps=30", "train.save_every=3", "eval.skip=true", f"teacher={teacher}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert launch(text, whole, *words).returncode == 0
    running = subprocess.Popen(
        command(text, broken, *words), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not list((broken / "checkpoints").glob("step_*6*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert len(metrics_of(broken)) < 30, "the run was killed before its end"
    done = launch(text, broken, *words, "train.resume=must")
    assert done.returncode == 0, done.stderr[-3000:]
    kept = ("step", "loss", "data_corr", "lr", "grad_norm")
    assert [[row[k] for k in kept] for row in metrics_of(broken)] == [
        [row[k] for k in kept] for row in metrics_of(whole)
    ]
    one = TextModel.from_pretrained(whole / "student").denoiser.state_dict()
    two = TextModel.from_pretrained(broken / "student").denoiser.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("train_lm.py", ["run.device=cuda"], "no GPU can be used"),
        ("train_cifar10.py", ["data.source=/nowhere/at/all"], "/nowhere/at/all"),
        ("train_imagenet.py", ["data=/nowhere"], "data.path: there is no file or folder /nowhere"),
        ("train_imagenet.py", ["objective.num_lambdas=many"], "objective.num_lambdas"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(script: str, words: list[str], said: str, tmp_path: Path) -> None:
    if "cuda" in words[0] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, str(ROOT / "launch" / script), f"run.dir={tmp_path}", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error: " in done.stderr and said in done.stderr and "Traceback" not in done.stderr

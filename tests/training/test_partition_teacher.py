"""A frozen teacher in parts, on two ranks: the same losses and predictions to the bit, and half of its blocks on each."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import load_tokenizer
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.model import TextModel
from di4c_lm.networks.base import attention_blocks
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.runs import recipe
from di4c_lm.runs.folder import parse_run
from tests.domains.test_text import TEXTS

WAYS = {"whole": "zero.teacher=replicated", "parts": "zero.teacher=partitioned"}


def words(folder: Path, way: str) -> list[str]:
    return [
        *f"teacher={folder / 'teacher'} data={folder / 'texts.jsonl'} run.dir={folder / way} {WAYS[way]}".split(),
        *[
            "recipe=sequential",
            "optim=adamw",
            "zero.stage=3",
            "train.steps=2",
            "train.micro_batch_size=2",
            "train.log_every=1",
        ],
        *["eval.skip=true", "data.evaluator_share=0", "run.threads=1", "run.device=cpu"],
    ]


def on_this_rank(folder: Path) -> None:
    """Both runs, one after the other; and how many numbers of the teacher's blocks this rank keeps."""
    kept = []
    whole = recipe.partition

    def partition(blocks: Any, world: Any) -> None:
        before = sum(p.numel() for block in blocks for p in block.parameters())
        whole(blocks, world)
        after = sum(p.to_local().numel() for block in blocks for p in block.parameters())
        kept.append((before, after))

    recipe.partition = partition
    for way in WAYS:
        assert recipe.run(DOMAIN, parse_run(DOMAIN, words(folder, way), program="test")[0]) == 0
    (folder / f"kept{os.environ['RANK']}.json").write_text(json.dumps(kept))
    os._exit(0)


def test_two_ranks_hold_half_and_learn_the_same(tmp_path: Path, free_port: int, environment: dict[str, str]) -> None:
    tokenizer = load_tokenizer(DataConfig(vocab_size=300), TEXTS, tmp_path)
    torch.manual_seed(0)
    network = DIT(DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8), num_states=len(tokenizer))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    TextModel(denoiser=network.eval(), tokenizer=tokenizer, length=16).save_pretrained(tmp_path / "teacher")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 8))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "WORLD_SIZE": "2"}
    code = f"from tests.training.{Path(__file__).stem} import *; on_this_rank(Path({str(tmp_path)!r}))"
    root = Path(__file__).resolve().parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=root,
            env={**environment, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:]
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / way / "metrics.jsonl").read_text().splitlines()]
        for way in WAYS
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    students = [TextModel.from_pretrained(tmp_path / way / "student") for way in WAYS]
    x = students[0].encode(TEXTS[0][:8])
    assert torch.equal(students[0].logits(x), students[1].logits(x))
    blocks = sum(p.numel() for block in attention_blocks(network) for p in block.parameters())
    for rank in range(2):
        ((before, after),) = json.loads((tmp_path / f"kept{rank}.json").read_text())
        assert before == blocks and 0.5 <= after / before < 0.6


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["teacher.kind=train"], "zero.teacher must be replicated, unless a teacher is given"),
        (["teacher=folder", "export=merged"], "zero.teacher must be replicated, unless a teacher is given"),
        (["objective=mdlm"], "zero.teacher must be left out where objective=mdlm"),
    ],
)
def test_what_cannot_be_partitioned_is_refused(more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_run(DOMAIN, ["zero.teacher=partitioned", *more], program="test")
    assert said in capsys.readouterr().err

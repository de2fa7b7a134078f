"""Runs on prepared shards that are killed and go on with other numbers of ranks: no sample is lost, none is seen twice."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from di4c_lm.data.records.shards import Shards, ShardSource
from tests.data.records.helpers import write_shards

GLOBAL_BATCH, STEPS, SEQUENCES = 8, 60, 170


def test_no_sample_is_lost_or_seen_twice_over_kills_and_numbers_of_ranks(tmp_path: Path) -> None:
    """2 -> 1 -> 2 -> 4 -> 2 -> 1 ranks, 5 times killed, over 480 sequences: almost 3 epochs of 170."""
    shards, folder = tmp_path / "shards", tmp_path / "run"
    shards.mkdir()
    folder.mkdir()
    parts = np.array_split(np.arange(SEQUENCES * 4).reshape(-1, 4), 7)
    write_shards(shards, parts)
    command = [sys.executable, str(Path(__file__).with_name("read_shards.py")), str(shards), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= 8, "of the 11 processes that were to be killed, some may have been at their end"
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    by_step = [sorted(name for step, _, *names in lines if int(step) == n for name in names) for n in range(STEPS)]
    whole = ShardSource(Shards.read(shards), seed=11).read(0, STEPS * GLOBAL_BATCH)
    names = [f"{e}/{n}" for e, n in zip(whole.epoch.tolist(), whole.sample_id.tolist(), strict=True)]
    unbroken = [sorted(names[n * GLOBAL_BATCH : (n + 1) * GLOBAL_BATCH]) for n in range(STEPS)]
    assert by_step == unbroken
    seen = [name for step in by_step for name in step]
    assert len(seen) == len(set(seen)) == STEPS * GLOBAL_BATCH
    for epoch in range(2):
        assert {f"{epoch}/{n}" for n in range(SEQUENCES)} <= set(seen)

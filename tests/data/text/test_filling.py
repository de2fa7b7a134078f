"""Records packed into rows, or filled up to buckets: in files, shards and streams, on any number of ranks, and resumed."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from di4c_lm.data.batches import Batch, BatchStream, Noised, PackedSource, noised
from di4c_lm.data.text.corpus import Corpus, load_corpus
from di4c_lm.data.text.pairs import Filling
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.runs.prepare.shards import main as prepare_shards
from tests.data.text.test_pairs import LENGTH, config, files, pairs, record

RECORDS = [record(f"{n} and", "one " * (n % 9 + 1) + "two") for n in range(60)]
WAYS: dict[str, dict[str, Any]] = {
    "packing": {"packing": True},
    "joined": {"packing": True, "joined": True},
    "buckets": {"buckets": (10, 16)},
}


def corpus(folder: Path, where: str, way: str) -> Corpus:
    made = config(folder, files(folder, RECORDS), **WAYS[way])
    if where == "shards":
        words = [f"out={folder / 'shards'}", f"path={made.path}", f"tokenizer={made.tokenizer}", f"length={LENGTH}"]
        filling = [f"{key}={json.dumps(value)}".replace(" ", "") for key, value in WAYS[way].items()]
        assert prepare_shards([*words, *filling, "records=prompt", "validation_share=0.2", "shard_tokens=320"]) == 0
        made = config(folder, folder / "shards", kind="shards", **WAYS[way])
    if where == "streaming":
        made = config(folder, Path(str(made.path)), streaming=True, shuffle_buffer=4, **WAYS[way])
    return load_corpus(made, 0, folder)


def of_batch(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each record: what is given, and what is learned."""
    assert batch.parts is not None
    found = []
    for x, parts in zip(batch.x, batch.parts, strict=True):
        for number in range(1, int(parts.max()) // 2 + 1):
            found.append((tuple(x[parts == 2 * number + 1].tolist()), tuple(x[parts == 2 * number].tolist())))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_files_shards_and_streams_hold_the_same(tmp_path: Path, way: str) -> None:
    found, rows = [], []
    for where in ("files", "shards", "streaming"):
        (tmp_path / where).mkdir()
        made = corpus(tmp_path / where, where, way)
        stream: Any = BatchStream(made.train, micro_batch_size=4)
        assert made.validation_given is not None and made.validation.shape[1] == LENGTH
        rows.append(sorted(map(tuple, torch.cat([made.validation, made.validation_given[:, None]], 1).tolist())))
        train: Any = made.train
        count = len(train) if where != "streaming" else len(found[0])
        read: list[Any] = []
        while len(read) < count:
            read += [(batch, row) for batch in [next(stream)] for row in range(len(batch.x))]
        found.append([(batch.x[row].tolist(), batch.parts[row].tolist()) for batch, row in read[:count]])
    tokens = [Counter((tuple(np.array(x)[np.array(p) > 0]), tuple(q for q in p if q)) for x, p in one) for one in found]
    assert tokens[0] == tokens[1] == tokens[2]
    assert rows[0] == rows[1] == rows[2]


def test_packed_rows_have_every_record_once_and_little_room_left() -> None:
    documents = [json.dumps(one) for one in RECORDS]
    packed, plain = pairs(filling=Filling(packing=True)), pairs()
    rows_NW, alone_NV = packed.rows(documents), plain.rows(documents)
    batch = next(
        BatchStream(PackedSource(rows_NW[:, :LENGTH], 0, parts_ND=rows_NW[:, LENGTH:]), micro_batch_size=len(rows_NW))
    )
    eos: Any = plain.tokenizer.eos_token_id
    wanted = []
    for *row, given in alone_NV.tolist():
        end = row.index(eos) + 1 if eos in row else LENGTH
        wanted.append((tuple(row[:given]), tuple(row[given:end])))
    assert sorted(of_batch(batch)) == sorted(wanted)
    assert len(rows_NW) < 0.7 * len(RECORDS) and batch.segments is not None
    assert float((batch.segments > 0).double().mean()) > 0.8
    joined = pairs(filling=Filling(packing=True, joined=True)).rows(documents)
    assert set(joined[:, LENGTH:].ravel()) == {0, 2, 3} and len(joined) == len(rows_NW)


def test_buckets_fill_up_to_the_next_and_batches_are_no_wider(tmp_path: Path) -> None:
    made = corpus(tmp_path, "files", "buckets")
    stream: Any = BatchStream(made.train, micro_batch_size=8)
    widths = []
    train: Any = made.train
    for _ in range(len(train) // 8):
        batch = next(stream)
        used_B = (batch.parts > 0).sum(1)
        assert set(used_B.tolist()) <= {10, 16, LENGTH} and int(used_B.max()) == batch.x.shape[1]
        widths.append(len(set(used_B.tolist())))
    assert sum(widths) / len(widths) < 2


@pytest.mark.parametrize("where", ["files", "shards"])
def test_the_order_does_not_depend_on_ranks_and_a_run_resumes(tmp_path: Path, where: str) -> None:
    train: Any = corpus(tmp_path, where, "buckets").train

    def ids(batches: list[Batch]) -> list[int]:
        return [int(number) for batch in batches for number in batch.sample_id]

    one = BatchStream(train, micro_batch_size=6)
    wanted = [next(one) for _ in range(12)]  # into the second epoch
    state = None
    again = BatchStream(train, micro_batch_size=6)
    for _ in range(5):
        next(again)
        state = again.state_dict()
    assert state is not None
    ranks = [BatchStream(train, micro_batch_size=3, rank=rank, world_size=2) for rank in (0, 1)]
    for rank in ranks:
        rank.load_state_dict(state)
    rest = [next(rank) for _ in range(7) for rank in ranks]
    assert ids(rest) == ids(wanted[5:])
    size = len(train)
    assert len({*ids(wanted)[:size]}) == size < len(ids(wanted))


def test_a_stream_resumes_where_it_was(tmp_path: Path) -> None:
    train: Any = corpus(tmp_path, "streaming", "packing").train
    stream = BatchStream(train, micro_batch_size=3)
    next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    wanted = [next(stream) for _ in range(3)]
    again = BatchStream(train, micro_batch_size=3)
    again.load_state_dict(state)
    for one, other in zip(wanted, [next(again) for _ in range(3)], strict=True):
        assert torch.equal(one.x, other.x) and one.parts is not None and torch.equal(one.parts, other.parts)  # pyright: ignore[reportArgumentType]


def test_padding_and_what_is_given_are_never_masked() -> None:
    x, parts = torch.arange(12).view(2, 6), torch.tensor([[3, 2, 2, 5, 4, 0], [3, 3, 3, 2, 0, 0]])
    batch = Batch(x, torch.arange(2), torch.zeros(2, dtype=torch.int64), parts=parts)
    x_t = noised(MaskedProcess(99), batch, torch.ones(2), KeyedRng(3, torch.arange(2)))
    assert torch.equal(x_t == x, torch.tensor([[1, 0, 0, 1, 0, 1], [1, 1, 1, 0, 1, 1]]).bool())


def test_the_loss_of_a_packed_row_is_the_sum_of_its_records() -> None:
    torch.manual_seed(0)
    network = DIT(DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8), num_states=9)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    student = ClassChainSettings(codebook_size=3).over(network, torch.Generator().manual_seed(0))
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    objective = Likelihood().build(student, MaskedProcess(8), seed=0)
    zero = torch.zeros(1, dtype=torch.int64)

    def loss(x: list[int], masked: list[int], parts: list[int]) -> torch.Tensor:
        x_0 = torch.tensor([x])
        x_t = torch.where(torch.tensor([masked]).bool(), 8, x_0)
        t = torch.tensor([0.5], dtype=torch.float64)
        return objective(Batch(x_0, zero, zero, parts=torch.tensor([parts]), noised=Noised(x_t, t, 0 * t)))[0]

    whole = loss([1, 2, 3, 4, 5, 6, 0], [0, 1, 1, 0, 1, 1, 0], [3, 2, 2, 5, 4, 4, 0])
    parts = loss([1, 2, 3], [0, 1, 1], [3, 2, 2]) + loss([4, 5, 6], [0, 1, 1], [3, 2, 2])
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)

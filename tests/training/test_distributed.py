"""The processes of a run, seen from one of them; several at once: test_engine.py."""

import pytest
import torch

from di4c_lm.training import distributed


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu():
    assert distributed._choose_device("auto", 0) == torch.device("cpu")
    with pytest.raises(ValueError, match="run.device='cuda'.*no usable GPU"):
        distributed._choose_device("cuda", 0)


def test_more_ranks_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed._choose_device("auto", 1) == torch.device("cuda", 1)
    assert distributed._choose_device("cpu", 2) == torch.device("cpu")
    with pytest.raises(ValueError, match="local rank 2 has no GPU of its own: this machine has 2"):
        distributed._choose_device("auto", 2)


def test_one_process_needs_no_group():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]
    assert distributed.sum_over_ranks(torch.ones(2)).tolist() == [1.0, 1.0]
    distributed.barrier()
    distributed.shutdown()


@pytest.mark.parametrize(
    ("variables", "threads", "expected"),
    [
        ({}, 0, 8),
        ({"LOCAL_SIZE": "2"}, 0, 4),
        ({"LOCAL_WORLD_SIZE": "4"}, 0, 2),
        ({"LOCAL_SIZE": "16"}, 0, 1),
        ({"LOCAL_SIZE": "2"}, 3, 3),
    ],
)
def test_the_ranks_of_a_machine_share_its_cores(monkeypatch, variables, threads, expected):
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = []
    monkeypatch.setattr(distributed.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    distributed.set_threads(threads)
    assert found == [expected]

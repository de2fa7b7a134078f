"""The processes of a run, seen from one of them; several at once: test_engine.py."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from di4c_lm.training import distributed

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu():
    assert distributed.choose_device("auto", 0) == torch.device("cpu")
    with pytest.raises(ValueError, match="run.device must be cpu or auto where no GPU can be used, got 'cuda'"):
        distributed.choose_device("cuda", 0)


def test_more_ranks_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.choose_device("auto", 1) == torch.device("cuda", 1)
    assert distributed.choose_device("cpu", 2) == torch.device("cpu")
    with pytest.raises(ValueError, match="local rank 2 has no GPU of its own: this machine has 2"):
        distributed.choose_device("auto", 2)


@pytest.mark.skipif(not CPUINFO.exists(), reason="the machine does not say what its CPU can do")
def test_a_cpu_multiplies_in_bfloat16_where_its_flags_say_so():
    (flags, *_) = [line for line in CPUINFO.read_text("utf-8").splitlines() if line.startswith("flags")] or [""]
    said = not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())
    assert distributed.has_bfloat16(torch.device("cpu")) == said


def join(**environment):
    """Status and last line of a process that joins its run as the environment says."""
    code = (
        "from di4c_lm.core.terminal import errors_end\nfrom di4c_lm.training.distributed import init_distributed\n"
        "with errors_end():\n    print(init_distributed('cpu').size)"
    )
    known = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run([sys.executable, "-c", code], env=known | environment, capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).splitlines()[-1]


@pytest.fixture
def taken():
    """A port that another program listens at."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield str(other.getsockname()[1])


def test_one_rank_needs_no_port(taken):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken}
    assert join(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", **place) == (0, "1")


def test_several_ranks_name_a_port_that_is_taken_and_one_that_is_free(taken):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken}
    status, said = join(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", **place)
    assert status == 2 and f"MASTER_PORT={taken} is taken" in said and "deepspeed --master_port" in said


@pytest.mark.parametrize(
    "environment, said",
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number"),
        ({"LOCAL_RANK": "-"}, "LOCAL_RANK must be a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR must be set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "MASTER_PORT must be"),
    ],
)
def test_what_a_launcher_leaves_wrong_is_named(environment, said):
    status, line = join(**environment)
    assert status == 2 and line.startswith(f"error: {said}")


def test_one_process_needs_no_group():
    """In a process of its own: this one may be in a group, which DeepSpeed remembers."""
    code = """if True:
        import torch
        from di4c_lm.training import distributed
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        assert distributed.gather_objects({"a": 1}) == [{"a": 1}]
        assert distributed.sum_over_ranks(torch.ones(2)).tolist() == [1.0, 1.0]
        distributed.barrier()
        distributed.shutdown()
    """
    subprocess.run([sys.executable, "-c", code], check=True)


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

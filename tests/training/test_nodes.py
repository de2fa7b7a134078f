"""A run of two nodes: two launchers, each in a network of its own, joined by a cable."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

TOY = Path(__file__).with_name("toy.py")
LAUNCHER = str(Path(sys.executable).with_name("deepspeed"))
# In a network namespace of its own: the first node here, the second in another one, and a pair of virtual interfaces between them.
NETWORK = """
set -e
ip link set lo up
unshare -n sleep 1000 & second=$!
trap 'kill $second' EXIT
until [ "$(readlink /proc/$second/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
ip link add cable0 type veth peer name cable1
ip link set cable1 netns $second
ip addr add 10.77.0.1/24 dev cable0
ip link set cable0 up
nsenter -t $second -n ip link set lo up
nsenter -t $second -n ip addr add 10.77.0.2/24 dev cable1
nsenter -t $second -n ip link set cable1 up
"""
RUN = """
GLOO_SOCKET_IFNAME=cable1 nsenter -t $second -n "$@" --node_rank 1 "$script" "$specs" & other=$!
GLOO_SOCKET_IFNAME=cable0 "$@" --node_rank 0 "$script" "$specs"
wait $other
"""


def in_networks(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "-r", "-n", "bash", "-c", NETWORK + code, "bash", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=840, check=False)


def test_the_example_hostfile_is_one() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    example = Path(__file__).parents[2] / "configs" / "hostfile.example"
    assert dict(fetch_hostfile(str(example)) or {}) == {"node-0": 8, "node-1": 8}


@pytest.mark.slow
def test_two_nodes_train_like_one(tmp_path, environment, run_toy, read_trace) -> None:
    probe = in_networks("nsenter -t $second -n true", **environment)
    if probe.returncode:
        pytest.skip(f"network namespaces are not permitted here: {probe.stderr[-300:]}")
    spec = {"steps": 6, "stage": 2, "save_every": 3}
    (tmp_path / "hostfile").write_text("node-0 slots=1\nnode-1 slots=1\n")
    words = [LAUNCHER, "--hostfile", str(tmp_path / "hostfile"), "--no_ssh"]
    words += ["--master_addr", "10.77.0.1", "--master_port", "29511"]
    specs = json.dumps([{**spec, "run_dir": str(tmp_path / "two_nodes")}])
    done = in_networks(RUN, *words, **environment, script=str(TOY), specs=specs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run_toy([{**spec, "run_dir": str(tmp_path / "one_node")}], ranks=2).check()
    assert len(read_trace(tmp_path / "one_node")) == 6
    assert read_trace(tmp_path / "two_nodes") == read_trace(tmp_path / "one_node")
    ours, theirs = (load_file(tmp_path / name / "raw.safetensors") for name in ("two_nodes", "one_node"))
    assert all(ours[key].equal(theirs[key]) for key in theirs)

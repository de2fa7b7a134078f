"""A file that carries code is refused before any of it runs."""

import argparse
import datetime
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from di4c_lm.checkpoints.load import load_checkpoint
from di4c_lm.checkpoints.pickles import plain, read_pickle
from tests.checkpoints.formats import LENGTH, mdlm_config, named, write_ckpt
from tests.checkpoints.helpers import tiny


class Creates:
    """Unpickled by Python, this makes a file."""

    def __init__(self, path: Path, function: object) -> None:
        self.path, self.function = path, function

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        arguments = {os.system: (f"touch {self.path}",), os.mkdir: (str(self.path),)}
        return self.function, arguments.get(self.function, (str(self.path), "w"))


@pytest.mark.parametrize("function", [os.system, open, os.mkdir])
@pytest.mark.parametrize("place", ["hyper_parameters", "tensor_key", "shadow", "plain_pickle", "bin"])
def test_malicious_pickle_is_refused_and_creates_nothing(tmp_path, function, place):
    witness = tmp_path / "witness"
    bomb, network = Creates(witness, function), tiny()
    source = tmp_path / "last.ckpt"
    if place == "hyper_parameters":
        write_ckpt(source, network, None, more={"hyper_parameters": {"config": bomb}})
    elif place == "tensor_key":
        write_ckpt(source, network, None, more={"state_dict": {**named(network), "backbone.x": bomb}})
    elif place == "shadow":
        write_ckpt(source, network, None, more={"ema": {"shadow_params": [bomb]}})
    elif place == "plain_pickle":
        source.write_bytes(pickle.dumps({"state_dict": named(network), "bomb": bomb}))
    else:
        source = tmp_path / "folder"
        source.mkdir()
        (source / "config.json").write_text(str(mdlm_config(network)).replace("'", '"').replace("False", "false"))
        torch.save({**named(network), "backbone.x": bomb}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="carr(ies|y) code.* refused") as caught:
        load_checkpoint(source, length=LENGTH)
    assert str(source) in str(caught.value)
    assert not witness.exists()


def test_the_bombs_of_this_test_are_live(tmp_path):
    """Python's own unpickler sets them off, so that the test above can fail."""
    for index, function in enumerate((os.system, open)):
        pickle.loads(pickle.dumps(Creates(tmp_path / str(index), function)))
        assert (tmp_path / str(index)).exists()


def test_plain_values_of_other_libraries_are_read_as_nothing(tmp_path):
    """A trainer keeps its arguments, paths and numbers beside the weights."""
    more = {
        "args": argparse.Namespace(lr=1e-3),
        "out": Path("runs"),
        "best": np.float64(0.5),
        "when": datetime.datetime(2026, 1, 1),
    }
    torch.save({"state_dict": named(tiny()), **more}, tmp_path / "last.ckpt")
    found = read_pickle(tmp_path / "last.ckpt")
    assert torch.equal(found["state_dict"]["backbone.vocab_embed.embedding"], tiny().vocab_embed.embedding)
    assert [plain(found[name]) for name in more] == [None] * 4


def test_refusal_says_what_the_code_is_and_how_to_convert(tmp_path):
    torch.save({"state_dict": {}, "x": Creates(tmp_path / "witness", open)}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"open.*weights_only=False and save only its 'state_dict'"):
        read_pickle(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"hello", pickle.dumps([1]), pickle.dumps({"a": 1}, protocol=5)[:-4]]
)
def test_bytes_that_are_no_checkpoint_are_refused(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.ckpt: expected"):
        read_pickle(tmp_path / "x.ckpt")


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(ValueError, match=r"x\.ckpt: expected"):
        read_pickle(tmp_path / "x.ckpt")


def test_plain_reads_the_values_of_an_omegaconf_config(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    values = {"model": {"length": 6, "names": ["a", 2, None], "rate": 0.5, "on": True}, "ref": "${model.length}"}
    torch.save({"config": omegaconf.OmegaConf.create(values)}, tmp_path / "x.ckpt")
    assert plain(read_pickle(tmp_path / "x.ckpt")) == {"config": values}

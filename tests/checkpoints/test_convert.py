"""From each format to each other and back without a bit lost."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from di4c_lm.checkpoints import lightning, mdlm, own, sdtt
from di4c_lm.checkpoints.load import load_checkpoint, read_checkpoint
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.runs.convert import main
from tests.checkpoints.formats import LENGTH, mdlm_config, named, training_config, write_ckpt, write_folder
from tests.checkpoints.helpers import PUBLISHED, assert_same_tensors, tiny
from tests.tools.helpers import run_tool

TEACHER_FORMATS = ("mdlm", "mdlm_bin", "sdtt", "sdtt_twice", "ckpt", "di4c")
STUDENT_FORMATS = ("sdtt", "ckpt", "di4c")
WRITERS = {"mdlm": mdlm.write, "sdtt": sdtt.write, "ckpt": lightning.write, "di4c": own.write}
ADALN = AdaLNSettings(distribution="gaussian", dim=3, inject_at=1)


def _source(folder: Path, kind: str, network: Any) -> Path:
    """A checkpoint of format `kind` that none of our published-format writers wrote."""
    is_di4c = {"is_di4c": True} if network.has_latents else {}
    if kind in ("mdlm", "mdlm_bin"):
        return write_folder(folder / kind, named(network), mdlm_config(network), pickled=kind == "mdlm_bin")
    if kind in ("sdtt", "sdtt_twice"):
        prefix = "backbone.backbone." if kind == "sdtt_twice" else "backbone."
        return write_folder(folder / kind, named(network, prefix), training_config(network, **is_di4c))
    if kind == "ckpt":
        more = {"hyper_parameters": {"config": training_config(network, parameterization="subs", **is_di4c)}}
        return write_ckpt(
            folder / "last.ckpt", tiny(getattr(network, "settings", NoMixture()), seed=99), network, more=more
        )
    own.save(folder / kind, network, length=LENGTH, extra={"tokenizer": "abc"})
    return folder / kind


def _file_of(path: Path) -> dict[str, torch.Tensor]:
    """Tensors under the names in the file."""
    if path.suffix == ".ckpt":
        return torch.load(path, weights_only=True)["state_dict"]
    if (path / "pytorch_model.bin").exists():
        return torch.load(path / "pytorch_model.bin", weights_only=True)
    return load_file(path / "model.safetensors")


def _there_and_back(tmp_path: Path, network: Any, kind: str, between: str) -> None:
    source = _source(tmp_path, kind, network)
    first = read_checkpoint(source)
    middle = tmp_path / ("middle.ckpt" if between == "ckpt" else "middle")
    WRITERS[between](middle, first)
    via = read_checkpoint(middle)
    assert_same_tensors(via.tensors, network.tensors())
    assert (via.model, via.mixture, via.sizes) == (first.model, first.mixture, first.sizes)
    home = kind.split("_")[0]
    back = tmp_path / ("back.ckpt" if home == "ckpt" else "back")
    WRITERS[home](back, via)
    again = read_checkpoint(back)
    assert (again.model, again.mixture, again.sizes) == (first.model, first.mixture, first.sizes)
    assert again.extra == first.extra
    assert_same_tensors(again.tensors, network.tensors())
    if kind != "ckpt":
        assert_same_tensors(_file_of(back), _file_of(source))
        assert json.loads((back / "config.json").read_text()) == json.loads((source / "config.json").read_text())


@pytest.mark.parametrize("kind, between", [*itertools.product(TEACHER_FORMATS, WRITERS)])
def test_a_teacher_there_and_back(tmp_path, kind, between):
    _there_and_back(tmp_path, tiny(), kind, between)


@pytest.mark.parametrize("kind, between", [*itertools.product(STUDENT_FORMATS, STUDENT_FORMATS)])
def test_a_student_there_and_back(tmp_path, kind, between):
    _there_and_back(tmp_path, tiny(PUBLISHED), kind, between)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_survive(tmp_path, dtype):
    _there_and_back(tmp_path, tiny().to(dtype), "mdlm", "sdtt")


@pytest.mark.parametrize(
    "mixture, target, complaint",
    [
        (PUBLISHED, "mdlm", "no place for λ"),
        (ADALN, "mdlm", "no place for λ"),
        (ADALN, "sdtt", "must have mixture=token"),
        (ADALN, "ckpt", "must have mixture=token"),
        (TokenSettings(distribution="stratified"), "sdtt", "must have mixture=token"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_written(tmp_path, mixture, target, complaint):
    weights = read_checkpoint(_source(tmp_path, "di4c", tiny(mixture)))
    with pytest.raises(ValueError, match=complaint):
        WRITERS[target](tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


def test_mdlm_folder_from_another_format_names_where_its_code_lies(tmp_path):
    """So that `transformers` loads it with MDLM's own classes."""
    mdlm.write(tmp_path / "out", read_checkpoint(_source(tmp_path, "di4c", tiny())))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForMaskedLM"] == "kuleshov-group/mdlm-owt--modeling_mdlm.MDLM"
    assert (config["vocab_size"], config["hidden_dim"], config["n_heads"]) == (11, 16, 2)


@pytest.mark.parametrize("weights, seed", [("ema", 0), ("raw", 99)])
def test_command_converts_by_choice_of_weights(tmp_path, capsys, weights, seed):
    source = _source(tmp_path, "ckpt", tiny(PUBLISHED))
    assert main([f"source={source}", f"target={tmp_path / 'out'}", "to=di4c", f"weights={weights}"]) == 0
    expected = tiny(PUBLISHED, seed=seed).tensors()
    assert f"{len(expected)} tensors" in capsys.readouterr().out
    assert_same_tensors(load_checkpoint(tmp_path / "out").tensors(), expected)


def test_command_writes_a_lightning_file_for_a_name_in_ckpt(tmp_path):
    source = _source(tmp_path, "mdlm", tiny())
    assert main([f"source={source}", f"target={tmp_path / 'out.ckpt'}", "to=mdlm"]) == 0
    assert_same_tensors(load_checkpoint(tmp_path / "out.ckpt").tensors(), tiny().tensors())


def test_command_refuses_bad_input_with_exit_2(tmp_path, capsys):
    for source, to, complaint in (("nowhere", "di4c", "found nothing"), ("nowhere", "onnx", "to must be one of")):
        with pytest.raises(SystemExit) as caught:
            main([f"source={tmp_path / source}", f"target={tmp_path / 'out'}", f"to={to}"])
        assert caught.value.code == 2
        assert complaint in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_command_has_help():
    done = run_tool("convert_checkpoint", "--help")
    assert done.returncode == 0
    assert all(key in done.stdout for key in ("weights=", "a source that has both"))

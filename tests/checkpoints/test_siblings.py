"""BD3-LM, RADD, SEDD and Duo: read by what they are, in agreement with their papers, written back bitwise, refused where they differ."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from di4c_lm.checkpoints import own
from di4c_lm.checkpoints.load import domain_of, load_checkpoint, read_checkpoint
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.uniform import UniformProcess
from di4c_lm.runs.convert import WRITERS, main
from tests.checkpoints.formats import mdlm_config, named, training_config, write_ckpt, write_folder
from tests.checkpoints.helpers import MODEL, PUBLISHED, assert_same_tensors, tiny
from tests.checkpoints.siblings import (
    FORMAT_OF,
    KINDS,
    LENGTH,
    STATES,
    config_of,
    probabilities,
    rewrite,
    tensors_of,
    write_sibling,
)

T = torch.tensor([0.2, 0.7, 1.0])


def sequences() -> torch.Tensor:
    """Of each kind of noise: any state, MASK, the last, among them."""
    return torch.randint(STATES, (3, LENGTH), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_its_own_code_says(tmp_path: Path, kind: str) -> None:
    network = load_checkpoint(write_sibling(tmp_path / kind, kind))
    x_t = sequences()
    found, expected = network.double()(x_t, T).log_probs()[:, 0].exp(), probabilities(kind, x_t, T)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    uniform = kind == "duo"
    assert isinstance(network.process, UniformProcess if uniform else MaskedProcess)
    assert bool((found[..., -1] == 0).all()) is not uniform
    assert torch.equal(network.stages(x_t, T, None, share=False).unknown, (x_t == STATES - 1) | uniform)


@pytest.mark.parametrize("kind", KINDS)
def test_the_settings_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    weights = read_checkpoint(write_sibling(tmp_path / kind, kind))
    model = weights.model
    assert (model.hidden_size, model.num_blocks, model.num_heads, model.cond_dim, model.dropout) == (16, 2, 2, 8, 0.1)
    assert weights.sizes == {"num_states": STATES, "length": LENGTH} and domain_of(tmp_path / kind) == "text"
    expected = {
        "bd3lm": ("masked", True, False, "logits", False),
        "bd3lm_plain": ("masked", False, False, "logits", False),
        "radd": ("masked", False, True, "logits", False),
        "sedd": ("masked", True, False, "scaled_scores", True),
        "sedd_unscaled": ("masked", True, False, "scores", True),
        "duo": ("uniform", True, False, "logits", True),
    }[kind]
    assert (model.process, model.modulation, model.norm_bias, model.output, model.time_conditioning) == expected
    assert_same_tensors(weights.tensors, tensors_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_bitwise(tmp_path: Path, kind: str) -> None:
    """Through our own format, by the command; tensors, names, order of keys aside, and the config are as they were."""
    source, to = write_sibling(tmp_path / "source", kind), FORMAT_OF.get(kind, kind)
    assert main([f"source={source}", f"target={tmp_path / 'ours'}", "to=di4c"]) == 0
    assert main([f"source={tmp_path / 'ours'}", f"target={tmp_path / 'back'}", f"to={to}"]) == 0
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), load_file(source / "model.safetensors"))
    configs = [json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_file_of_the_format_was_before_is_written_so_that_it_is_read(tmp_path: Path, kind: str) -> None:
    to, first = FORMAT_OF.get(kind, kind), read_checkpoint(write_sibling(tmp_path / "source", kind))
    own.save(tmp_path / "ours", first.build("source"), length=LENGTH, extra={"tokenizer": "abc"})
    WRITERS[to](tmp_path / "fresh", read_checkpoint(tmp_path / "ours"))
    again = read_checkpoint(tmp_path / "fresh")
    assert (again.model, again.sizes, again.extra) == (first.model, first.sizes, {"tokenizer": "abc"})
    assert_same_tensors(again.tensors, first.tensors)


@pytest.mark.parametrize("to", ["mdlm", "sdtt", "bd3lm"])
def test_bd3lm_at_full_block_is_an_mdlm(tmp_path: Path, to: str) -> None:
    first = read_checkpoint(write_sibling(tmp_path / "source", "bd3lm"))
    WRITERS[to](tmp_path / "other", first)
    again = read_checkpoint(tmp_path / "other")
    assert (again.model, again.sizes) == (first.model, first.sizes)
    WRITERS["bd3lm"](tmp_path / "back", again)
    assert_same_tensors(read_checkpoint(tmp_path / "back").tensors, tensors_of("bd3lm"))


def test_duo_as_a_lightning_file_of_its_own_repository(tmp_path: Path) -> None:
    """The config names the algorithm; a file that our writer makes of a folder does too."""
    network = load_checkpoint(write_sibling(tmp_path / "source", "duo"))
    algorithm = {"name": "duo", "backbone": "dit", "parameterization": "mean", "causal_attention": False}
    config = training_config(network, algo={**algorithm, "time_conditioning": True})
    del config["parameterization"]
    path = write_ckpt(tmp_path / "last.ckpt", network, network, more={"hyper_parameters": {"config": config}})
    assert read_checkpoint(path).model.process == "uniform"
    assert main([f"source={tmp_path / 'source'}", f"target={tmp_path / 'own.ckpt'}", "to=duo"]) == 0
    for one in (path, tmp_path / "own.ckpt"):
        assert_same_tensors(read_checkpoint(one).tensors, tensors_of("duo"))
        assert read_checkpoint(one).model == network.config
    mdlm = training_config(
        tiny(), algo={**algorithm, "name": "mdlm", "parameterization": "subs", "time_conditioning": True}
    )
    path = write_ckpt(
        tmp_path / "mdlm.ckpt", tiny(), None, more={"hyper_parameters": {"config": mdlm | {"parameterization": {}}}}
    )
    model = read_checkpoint(path).model
    assert (model.process, model.time_conditioning) == ("masked", True)


@pytest.mark.parametrize(
    "algorithm, complaint",
    [
        ({"name": "ar"}, "algo.name='ar', expected one of mdlm, bd3lm, duo"),
        ({"name": "duo", "parameterization": "subs"}, "parameterization='subs', expected 'mean'"),
        ({"name": "duo", "causal_attention": True}, "causal_attention=True, expected False"),
    ],
)
def test_other_algorithms_are_refused(tmp_path: Path, algorithm: dict[str, Any], complaint: str) -> None:
    config = training_config(tiny(), algo=algorithm) | {"parameterization": {}}
    path = write_ckpt(tmp_path / "last.ckpt", tiny(), None, more={"hyper_parameters": {"config": config}})
    with pytest.raises(ValueError, match=complaint):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "kind, to, complaint",
    [
        ("sedd", "mdlm", "output=logits, got scaled_scores: the scale of concrete scores has no place"),
        ("sedd_unscaled", "bd3lm", "output=logits, got scores"),
        ("duo", "mdlm", "process=masked, got uniform: noise is another"),
        ("duo", "sedd", "process=masked, got uniform"),
        ("radd", "mdlm", "modulation=True, got False: norms are modulated by the noise level"),
        ("radd", "bd3lm", "norm_bias=False, got True: norms have biases"),
        ("bd3lm", "sedd", "output=scores or scaled_scores, got logits"),
        ("bd3lm", "radd", "modulation=False, got True"),
        ("bd3lm", "duo", "process=uniform, got masked"),
        ("bd3lm_plain", "sdtt", "modulation=True, got False"),
        ("bd3lm", "llada", "takes a decoder, got di4c_lm.DIT"),
    ],
)
def test_what_another_format_cannot_say_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, to: str, complaint: str
) -> None:
    source = write_sibling(tmp_path / "source", kind)
    with pytest.raises(SystemExit) as caught:
        main([f"source={source}", f"target={tmp_path / 'out'}", f"to={to}"])
    assert caught.value.code == 2 and complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["bd3lm", "radd", "sedd", "duo"])
def test_a_mixture_is_none_of_them(tmp_path: Path, to: str) -> None:
    own.save(tmp_path / "ours", tiny(PUBLISHED), length=LENGTH)
    with pytest.raises(ValueError, match="has no place for λ"):
        WRITERS[to](tmp_path / "out", read_checkpoint(tmp_path / "ours"))


@pytest.mark.parametrize(
    "kind, changes, complaint",
    [
        ("bd3lm", {"block_size": 4}, "block_size must be model_length=6, the whole sequence, got 4"),
        ("bd3lm", {"causal": True}, "causal must be false, got True"),
        ("bd3lm", {"adaln": False}, "unknown: sigma_map"),
        ("bd3lm", {"n_blocks": 3}, "missing: blocks.2"),
        ("bd3lm", {"vocab_size": 12}, "num_states=12 "),
        ("duo", {"causal": True}, "causal must be false, got True"),
        ("duo", {"hidden_dim": 32}, "hidden_size=32 "),
        ("sedd", {"graph": {"type": "uniform"}}, "graph.type must be absorb, got 'uniform'"),
        ("sedd", {"noise": {"type": "geometric"}}, "noise.type must be loglinear, got 'geometric'"),
        ("sedd", {"tokens": 11}, "num_states=12 "),
        ("radd", {"tokens": "ten"}, "tokens='ten', expected int"),
    ],
)
def test_what_a_config_says_and_tensors_do_not_is_named(
    tmp_path: Path, kind: str, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_checkpoint(write_sibling(tmp_path / "bad", kind, **changes))


@pytest.mark.parametrize(
    "config, tensors, complaint",
    [
        ("sedd", "radd", "missing .*sigma_map"),
        ("radd", "sedd", "unknown: sigma_map"),
        ("duo", "radd", "missing .*sigma_map"),
    ],
)
def test_a_config_alone_makes_no_format(tmp_path: Path, config: str, tensors: str, complaint: str) -> None:
    folder = write_sibling(tmp_path / "bad", config)
    rewrite(folder, tensors_of(tensors))
    with pytest.raises(ValueError, match=complaint):
        read_checkpoint(folder)


def test_one_word_alone_makes_no_format(tmp_path: Path) -> None:
    for number, config in enumerate(({"model_type": "bd3lm"}, {"model_type": "DUO"}, {"tokens": 10})):
        folder = write_folder(tmp_path / str(number), named(tiny()), config)
        with pytest.raises(ValueError, match="expected the config of one of the formats"):
            read_checkpoint(folder)


def test_an_mdlm_and_an_sdtt_are_what_they_were(tmp_path: Path) -> None:
    for name, config in (("mdlm", mdlm_config(tiny())), ("sdtt", training_config(tiny()))):
        weights = read_checkpoint(write_folder(tmp_path / name, named(tiny()), config))
        assert weights.extra["origin"]["format"] == name
        assert weights.model == type(MODEL)(**{**vars(MODEL), "dropout": 0.1})


def parameters_of(kind: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors_of(kind).items() if name != "rotary_emb.inv_freq"}


def test_the_trainer_s_own_files_of_sedd(tmp_path: Path) -> None:
    import yaml

    raw, parameters = tensors_of("sedd"), parameters_of("sedd")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config_of("sedd")))
    (tmp_path / "checkpoints").mkdir()
    path, shadow = tmp_path / "checkpoints" / "checkpoint_3.pth", [tensor + 1 for tensor in parameters.values()]
    content = {
        "optimizer": {"state": {}, "param_groups": []},
        "model": {f"module.{name}": tensor for name, tensor in raw.items()},
        "ema": {"decay": 0.9999, "num_updates": 3, "shadow_params": shadow},
        "step": 3,
    }
    torch.save(content, path)
    found = read_checkpoint(path)
    assert found.model.output == "scaled_scores" and found.model.time_conditioning
    for name, tensor in parameters.items():
        assert torch.equal(found.tensors[name], tensor + 1)
    assert_same_tensors(read_checkpoint(path, weights="raw").tensors, raw)
    x_t = sequences()
    network = load_checkpoint(path, weights="raw").double()
    torch.testing.assert_close(
        network(x_t, T).log_probs()[:, 0].exp(), probabilities("sedd", x_t, T), atol=1e-6, rtol=1e-5
    )


def test_lightning_files_of_bd3lm_at_full_block(tmp_path: Path) -> None:
    network = tiny()
    algorithm = {"name": "bd3lm", "backbone": "dit", "parameterization": "subs", "causal_attention": False}
    beside = {"sampling_eps_min": torch.tensor(0.001), "sampling_eps_max": torch.tensor(1.0)}

    def written(name: str, block: int) -> Path:
        config = training_config(network, algo=algorithm, block_size=block)
        config["parameterization"] = None
        path = write_ckpt(tmp_path / name, network, network, more={"hyper_parameters": {"config": config}})
        content = torch.load(path, weights_only=True)
        torch.save({**content, "state_dict": {**content["state_dict"], **beside}}, path)
        return path

    length = training_config(network)["model"]["length"]
    assert_same_tensors(read_checkpoint(written("whole.ckpt", length)).tensors, named(network, ""))
    with pytest.raises(ValueError, match=rf"block_size must be model.length={length}, the whole sequence, got 4"):
        read_checkpoint(written("blocks.ckpt", 4))

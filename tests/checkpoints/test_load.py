"""Every published format is recognised, gives the published tensors, and is refused whole where anything is amiss."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from di4c_lm.checkpoints import own
from di4c_lm.checkpoints.load import load_checkpoint, read_checkpoint
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import Latents, NoMixture
from di4c_lm.networks.base import product
from di4c_lm.networks.dit import DitConfig, DitStages
from tests.checkpoints.formats import LENGTH, mdlm_config, named, training_config, write_ckpt, write_folder
from tests.checkpoints.helpers import PUBLISHED, assert_same_tensors, tiny

PREFIXES = [
    "backbone.",
    "backbone.backbone.",
    "backbone._orig_mod.",
    "_orig_mod.backbone.",
    "module.",
    "module.model.",
    "",
]
MODEL = DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8, dropout=0.1)


@pytest.mark.parametrize("pickled", [False, True])
def test_mdlm_hub_folder(tmp_path, pickled):
    network = tiny()
    folder = write_folder(tmp_path / "mdlm", named(network), mdlm_config(network), pickled=pickled)
    (folder / "modeling_mdlm.py").write_text("raise SystemExit('remote code was run')")
    weights = read_checkpoint(folder)
    assert_same_tensors(weights.build(folder).tensors(), network.tensors())
    assert (weights.model, weights.mixture, weights.sizes["length"]) == (MODEL, NoMixture(), LENGTH)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_sdtt_hub_folder(tmp_path, prefix):
    network = tiny()
    tensors = {**named(network, prefix), "noise.sigma_max": torch.tensor(6.9), "noise.sigma_min": torch.tensor(1e-3)}
    weights = read_checkpoint(str(write_folder(tmp_path / "sdtt", tensors, training_config(network))))
    assert_same_tensors(weights.build("sdtt").tensors(), network.tensors())
    assert (weights.model, weights.sizes["length"]) == (MODEL, LENGTH)


@pytest.mark.parametrize("mixture", [NoMixture(), PUBLISHED])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_lightning_checkpoint_gives_ema_or_raw_by_choice(tmp_path, mixture, prefix):
    network, average = tiny(mixture), tiny(mixture, seed=1)
    more = {"hyper_parameters": {"config": training_config(network, parameterization="subs", backbone="dit")}}
    path = write_ckpt(tmp_path / "last.ckpt", network, average, prefix=prefix, more=more)
    assert_same_tensors(load_checkpoint(path, weights="raw").tensors(), network.tensors())
    weights = read_checkpoint(path, weights="ema")
    assert_same_tensors(weights.build(path).tensors(), average.tensors())
    assert (weights.model, weights.mixture, weights.sizes["length"]) == (MODEL, mixture, LENGTH)


def test_weights_ema_is_what_there_is_where_a_file_holds_one_set(tmp_path):
    network = tiny()
    path = write_ckpt(tmp_path / "last.ckpt", network, None)
    assert_same_tensors(load_checkpoint(path, length=LENGTH).tensors(), network.tensors())
    torch.save(named(network), tmp_path / "bare.pt")
    assert_same_tensors(load_checkpoint(tmp_path / "bare.pt", length=LENGTH).tensors(), network.tensors())


def test_lightning_checkpoint_with_omegaconf_and_tokenizer_inside(tmp_path, monkeypatch):
    """As published: the hyper-parameters are objects of other libraries. Their settings are read, the objects are never made."""
    omegaconf = pytest.importorskip("omegaconf")
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="a")
    network, average = tiny(), tiny(seed=1)
    config = omegaconf.OmegaConf.create(training_config(network))
    more = {"hyper_parameters": {"config": config, "tokenizer": tokenizer}, "hparams_name": "kwargs"}
    path = write_ckpt(tmp_path / "last.ckpt", network, average, more=more)
    made = []
    monkeypatch.setattr(omegaconf.DictConfig, "__setstate__", lambda *_: made.append("config"))
    monkeypatch.setattr(PreTrainedTokenizerFast, "__setstate__", lambda *_: made.append("tokenizer"), raising=False)
    weights = read_checkpoint(path)
    assert_same_tensors(weights.build(path).tensors(), average.tensors())
    assert (weights.model, weights.sizes["length"]) == (MODEL, LENGTH)
    assert made == []


def test_our_folder_and_a_file_in_it(tmp_path):
    network = tiny(AdaLNSettings(inject_at=1))
    own.save(tmp_path, network, length=LENGTH, extra={"tokenizer": "abc"})
    for source in (tmp_path, tmp_path / "model.safetensors", tmp_path / "config.json"):
        assert_same_tensors(load_checkpoint(source).tensors(), network.tensors())
        assert read_checkpoint(source).extra == {"tokenizer": "abc"}


def test_heads_are_told_by_rotary_then_config_then_argument(tmp_path):
    network = tiny()
    tensors = named(network)
    folder = write_folder(
        tmp_path / "rotary", tensors, {k: v for k, v in mdlm_config(network).items() if k != "n_heads"}
    )
    assert load_checkpoint(folder).config.num_heads == 2
    del tensors["backbone.rotary_emb.inv_freq"]
    folder = write_folder(tmp_path / "config", tensors, mdlm_config(network))
    assert_same_tensors(load_checkpoint(folder).tensors(), network.tensors())
    torch.save({"state_dict": tensors}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="give num_heads="):
        load_checkpoint(tmp_path / "last.ckpt", length=LENGTH)
    loaded = load_checkpoint(tmp_path / "last.ckpt", length=LENGTH, num_heads=2)
    assert_same_tensors(loaded.tensors(), network.tensors())


def test_the_published_small_model_has_twelve_heads_even_where_nothing_says_so(tmp_path):
    network = tiny(model=DitConfig(hidden_size=768, num_blocks=1, num_heads=12, cond_dim=8))
    tensors = named(network)
    del tensors["backbone.rotary_emb.inv_freq"]
    torch.save({"state_dict": tensors}, tmp_path / "last.ckpt")
    assert load_checkpoint(tmp_path / "last.ckpt", length=LENGTH).config.num_heads == 12


def test_a_length_stated_nowhere_is_asked_for(tmp_path):
    path = write_ckpt(tmp_path / "last.ckpt", tiny(), None)
    with pytest.raises(ValueError, match="give length="):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["mdlm", "sdtt", "ckpt", "ours"])
def test_tensors_that_do_not_fit_are_all_listed(tmp_path, kind):
    network = tiny()
    own.save(tmp_path / "ours", network, length=LENGTH)
    prefix = "" if kind == "ours" else "backbone."
    tensors = named(network, prefix)
    del tensors[prefix + "blocks.1.attn_out.weight"], tensors[prefix + "output_layer.linear.bias"]
    tensors[prefix + "blocks.0.attn_qkv.weight"] = torch.zeros(48, 17)
    tensors |= {prefix + "blocks.7.norm1.weight": torch.ones(16), "discriminator.weight": torch.ones(2)}
    tensors[prefix + "blocks.0.norm2.weight"] = torch.ones(16, dtype=torch.int64)
    if kind == "ckpt":
        source = tmp_path / "last.ckpt"
        torch.save({"state_dict": tensors, "hyper_parameters": {"config": training_config(network)}}, source)
    elif kind == "ours":
        source = tmp_path / "ours"
        save_file(tensors, source / "model.safetensors")
    else:
        config = mdlm_config(network) if kind == "mdlm" else training_config(network)
        source = write_folder(tmp_path / kind, tensors, config)
    with pytest.raises(ValueError) as caught:
        load_checkpoint(source)
    message = str(caught.value)
    assert str(source) in message
    for part in (
        "missing: blocks.1.attn_out.weight 16x16",
        "missing: output_layer.linear.bias 11",
        "misshapen: blocks.0.attn_qkv.weight is 48x17, expected 48x16",
        "unknown: blocks.7.norm1.weight 16",
        "unknown: discriminator.weight 2",
        "not floating-point: blocks.0.norm2.weight is torch.int64",
    ):
        assert part in message


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"hidden_dim": 32}, r"hidden_size=32 \(the tensors: 16\)"),
        ({"n_heads": 4}, r"num_heads=4 \(the tensors: 2\)"),
        ({"vocab_size": 12}, r"num_states=12 \(the tensors: 11\)"),
        ({"n_blocks": 3}, "missing: blocks.2.norm1.weight"),
        ({"n_blocks": 10**9}, "1000000000 blocks cannot be made of 31 tensors"),
        ({"n_blocks": "two"}, "n_blocks='two', expected int"),
        ({"dropout": 2.0}, r"dropout must be in \[0, 1\), got 2.0"),
        (
            {"model_type": "gpt2"},
            "expected the config of one of the formats own, mdlm, bd3lm, duo, sedd, radd, llada, dream, llama, sdtt, lightning",
        ),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(tmp_path, changes, complaint):
    network = tiny()
    folder = write_folder(tmp_path / "mdlm", named(network), mdlm_config(network, **changes))
    with pytest.raises(ValueError, match=complaint) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("changes", [{"parameterization": "sedd"}, {"backbone": "dimamba"}])
def test_another_family_with_the_same_shapes_is_refused(tmp_path, changes):
    network = tiny()
    more = {"hyper_parameters": {"config": training_config(network, **changes)}}
    with pytest.raises(ValueError, match="expected 'subs'|expected 'dit'"):
        load_checkpoint(write_ckpt(tmp_path / "last.ckpt", network, None, more=more))


def test_a_di4c_config_without_its_latent_tensors_is_refused(tmp_path):
    network = tiny()
    folder = write_folder(tmp_path / "sdtt", named(network), training_config(network, is_di4c=True))
    with pytest.raises(ValueError, match=r"missing: latent_projection\.0\.weight 512x128"):
        load_checkpoint(folder)


def test_something_that_is_no_dit_is_refused_with_what_was_found(tmp_path):
    torch.save({"state_dict": {"wte.weight": torch.ones(2)}}, tmp_path / "gpt2.ckpt")
    with pytest.raises(ValueError, match=r"missing \['vocab_embed.embedding'.*found: wte.weight"):
        load_checkpoint(tmp_path / "gpt2.ckpt")


@pytest.mark.parametrize("fault", ["short", "shape", "order", "type"])
def test_an_ema_list_that_does_not_fit_is_refused_and_raw_still_loads(tmp_path, fault):
    network = tiny()
    path = write_ckpt(tmp_path / "last.ckpt", network, network)
    content = torch.load(path, weights_only=True)
    shadow = content["ema"]["shadow_params"]
    if fault == "short":
        shadow.pop()
    elif fault == "shape":
        shadow[3] = torch.ones(5)
    elif fault == "order":
        content["state_dict"] = dict(sorted(content["state_dict"].items()))
    else:
        content["ema"]["shadow_params"] = "lost"
    torch.save(content, path)
    with pytest.raises(ValueError, match="shadow_params|order") as caught:
        load_checkpoint(path, length=LENGTH)
    assert str(path) in str(caught.value)
    assert_same_tensors(load_checkpoint(path, weights="raw", length=LENGTH).tensors(), network.tensors())


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "/nowhere/at/all", "folder/lost.ckpt", "../absent"])
def test_an_absent_source_is_named(source):
    with pytest.raises(ValueError, match="found nothing") as caught:
        load_checkpoint(source)
    assert source in str(caught.value)


def test_a_folder_without_weights_or_config_says_what_it_holds(tmp_path):
    network = tiny()
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(ValueError, match="expected model.safetensors and config.json, found README.md"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(mdlm_config(network)))
    with pytest.raises(ValueError, match="pytorch_model.bin, or their .index.json, found README.md, config.json"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="could not read it"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_folder_in_shards(tmp_path, pickled):
    network = tiny()
    folder = write_folder(tmp_path / "mdlm", named(network), mdlm_config(network), pickled=pickled)
    name = "pytorch_model.bin" if pickled else "model.safetensors"
    stem, _, suffix = name.rpartition(".")
    (folder / name).unlink()
    where = {}
    for number, key in enumerate(named(network)):
        file = f"{stem}-{number % 2 + 1:05d}-of-00002.{suffix}"
        where[key] = file
    for file in set(where.values()):
        part = {key: tensor for key, tensor in named(network).items() if where[key] == file}
        torch.save(part, folder / file) if pickled else save_file(part, folder / file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert_same_tensors(read_checkpoint(folder).build(folder).tensors(), network.tensors())
    (folder / file).unlink()
    with pytest.raises(ValueError, match=rf"index\.json: expected these files beside it, found none: {file}"):
        read_checkpoint(folder)
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(where, "../elsewhere")}))
    with pytest.raises(ValueError, match="expected these files beside it"):
        read_checkpoint(folder)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module"])
def test_a_state_dict_under_the_names_that_trainers_give_it(tmp_path, key):
    network, average = tiny(), tiny(seed=1)
    torch.save({key: named(network, "module."), "step": 3}, tmp_path / "last.pt")
    assert_same_tensors(load_checkpoint(tmp_path / "last.pt", length=LENGTH).tensors(), network.tensors())
    torch.save({key: named(network), "ema": named(average)}, tmp_path / "both.pt")
    assert_same_tensors(load_checkpoint(tmp_path / "both.pt", length=LENGTH).tensors(), average.tensors())
    raw = load_checkpoint(tmp_path / "both.pt", length=LENGTH, weights="raw")
    assert_same_tensors(raw.tensors(), network.tensors())


def test_a_runs_folder_stands_for_its_student(tmp_path):
    own.save(tmp_path / "student", tiny(), length=LENGTH)
    assert_same_tensors(load_checkpoint(tmp_path).tensors(), tiny().tensors())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_read_nor_written(tmp_path, value):
    network = tiny()
    whole = write_folder(tmp_path / "mdlm", named(network), mdlm_config(network))
    network.blocks[0].norm1.weight.data[3] = value
    with pytest.raises(ValueError, match=r"not finite: 1 of the 16 values of blocks\.0\.norm1\.weight"):
        own.save(tmp_path / "own", network, length=LENGTH)
    assert not (tmp_path / "own" / "model.safetensors").exists()
    save_file(named(network), whole / "model.safetensors")
    with pytest.raises(ValueError, match=r"not finite: 1 of the 16 values of blocks\.0\.norm1\.weight"):
        load_checkpoint(whole)


def test_rows_that_pad_a_vocabulary_are_left_out(tmp_path):
    """Of 11 states padded to 64 the first 11 are kept; of 11 padded to 13, which no trainer does, all."""
    network = tiny(num_states=64)
    own.save(tmp_path, network, length=LENGTH)
    weights = read_checkpoint(tmp_path)
    found = weights.trimmed(11)
    assert found.sizes["num_states"] == 11 and found.build("trimmed").mask_id == 10
    for name in ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias"):
        assert torch.equal(found.tensors[name], weights.tensors[name][:11])
    assert weights.trimmed(64) is weights and weights.trimmed(65) is weights
    own.save(tmp_path, tiny(num_states=13), length=LENGTH)
    assert read_checkpoint(tmp_path).trimmed(11).sizes["num_states"] == 13


@pytest.mark.parametrize("name", ["model.safetensors", "last.ckpt"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, name):
    network = tiny()
    folder = write_folder(tmp_path / "mdlm", named(network), mdlm_config(network))
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        load_checkpoint(folder / name)


def test_a_safetensors_file_of_another_name_has_no_config(tmp_path):
    save_file(named(tiny()), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="expected model.safetensors with a config.json beside it"):
        load_checkpoint(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_ckpt_is_refused_by_name(tmp_path, share):
    path = write_ckpt(tmp_path / "last.ckpt", tiny(), None)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="truncated") as caught:
        load_checkpoint(path, length=LENGTH)
    assert str(path) in str(caught.value)


def _golden(name: str) -> Path:
    folder = os.environ.get("DI4C_SHARED")
    if folder is None or not (path := Path(folder) / "golden" / f"{name}.safetensors").exists():
        pytest.skip("needs the golden files: DI4C_SHARED is not set, or holds none")
    return path


@pytest.mark.parametrize("name", ["lm_dit", "lm_dit_di4c"])
@pytest.mark.parametrize("kind", ["folder", "ckpt"])
def test_golden_weights_give_the_golden_logits_through_every_format(tmp_path, name, kind):
    tensors = {f"backbone.{key}": value for key, value in load_file(_golden(name)).items()}
    golden = np.load(_golden(name).with_suffix(".npz"))
    config = {"hidden_size": 32, "cond_dim": 16, "n_blocks": 3, "n_heads": 4, "length": 12, "dropout": 0.1}
    if kind == "folder":
        source = write_folder(tmp_path / "folder", tensors, {"model": config, "time_conditioning": False})
    else:
        source = tmp_path / "last.ckpt"
        torch.save({"state_dict": tensors, "hyper_parameters": {"config": {"model": config}}}, source)
    network = load_checkpoint(source)
    read = torch.from_numpy(golden["indices"]), torch.from_numpy(golden["sigma"])
    with torch.no_grad():
        if network.has_latents:
            lam = Latents(torch.from_numpy(golden["z"])[:, None, None])
            found = network.drive(DitStages(network.network, *read), lam)
        else:
            found = product(DitStages(network, *read))
    expected = torch.from_numpy(golden["log_p_subs"])
    masked = torch.from_numpy(golden["indices"]) == network.mask_id
    torch.testing.assert_close(found.log_probs()[:, 0][masked][:, :-1], expected[masked][:, :-1], rtol=1e-4, atol=1e-4)


def test_half_precision_files_are_read_as_they_are_and_built_in_float32(tmp_path):
    network = tiny().bfloat16()
    folder = write_folder(tmp_path / "mdlm", named(network), mdlm_config(network))
    assert_same_tensors(read_checkpoint(folder).tensors, network.tensors())
    assert {tensor.dtype for tensor in load_checkpoint(folder).tensors().values()} == {torch.float32}

"""Decoders: each format gives the logits of transformers with a full mask, is written back bitwise, and is refused by name where amiss."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from di4c_lm.checkpoints import dream, llada, llama, own
from di4c_lm.checkpoints.load import load_checkpoint, read_checkpoint
from tests.checkpoints.decoders import KINDS, LENGTH, MASK, ROWS, config_of, reference, said, tensors_of, write_decoder
from tests.checkpoints.helpers import assert_same_tensors, tiny

WRITERS = {"llada": llada.write, "dream": dream.write, "llama": llama.write}


def tokens(num_batch: int = 3) -> torch.Tensor:
    """Sequences of 12 tokens, MASK at every third."""
    x_t = torch.randint(ROWS, (num_batch, 12), generator=torch.Generator().manual_seed(0))
    x_t[:, ::3] = MASK
    return x_t


def format_of(kind: str) -> str:
    return kind if kind in WRITERS else "llama"


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_hidden_states_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    network = load_checkpoint(write_decoder(tmp_path / kind, kind))
    logits_BDS, hidden_BDH = said(reference(kind), tokens())
    if kind == "dream":  # token d is said at d - 1
        logits_BDS, hidden_BDH = (torch.cat([one[:, :1], one[:, :-1]], 1) for one in (logits_BDS, hidden_BDH))
    with torch.no_grad():
        prediction = network(tokens(), torch.ones(3))
    torch.testing.assert_close(prediction.features[:, 0], hidden_BDH, rtol=1e-5, atol=1e-5)
    found_NS = prediction.output_head.logits(
        prediction.features[:, 0].flatten(0, 1), torch.zeros(36, dtype=torch.int64)
    )
    possible = torch.arange(ROWS) != MASK
    torch.testing.assert_close(found_NS[:, possible], logits_BDS.flatten(0, 1)[:, possible], rtol=1e-5, atol=1e-5)
    assert network.mask_id == MASK and network.config.shift == (kind == "dream")


@pytest.mark.parametrize("layout", ["whole", "shards", "bin", "bin_shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_bitwise(tmp_path: Path, kind: str, dtype: torch.dtype, layout: str) -> None:
    source = write_decoder(tmp_path / "source", kind, dtype=dtype, layout=layout)
    (source / "modeling.py").write_text("raise SystemExit('remote code was run')")
    weights = read_checkpoint(source)
    own.write(tmp_path / "ours", weights)
    WRITERS[format_of(kind)](tmp_path / "back", read_checkpoint(tmp_path / "ours"))
    expected = {name: tensor.to(dtype) for name, tensor in tensors_of(kind, reference(kind)).items()}
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), expected)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )


def test_a_network_without_a_source_is_written_so_that_it_is_read_again(tmp_path: Path) -> None:
    for kind in KINDS:
        weights = read_checkpoint(write_decoder(tmp_path / kind, kind))
        name = format_of(kind)
        WRITERS[name](tmp_path / "new" / kind, dataclasses.replace(weights, extra={}))
        again = read_checkpoint(tmp_path / "new" / kind)
        assert (again.model, again.sizes) == (weights.model, weights.sizes)
        assert_same_tensors(again.tensors, weights.tensors)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_what_is_written(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    weights = read_checkpoint(write_decoder(tmp_path / "source", kind))
    llama.write(tmp_path / "new", dataclasses.replace(weights, extra={}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new", trust_remote_code=False)
    torch.testing.assert_close(said(model, tokens()), said(reference(kind), tokens()))


def test_a_narrow_file_stays_narrow_where_that_is_asked_for(tmp_path: Path) -> None:
    weights = read_checkpoint(write_decoder(tmp_path / "narrow", "qwen2", dtype=torch.bfloat16))
    assert {one.dtype for one in weights.build("it", keep_dtype=True).parameters()} == {torch.bfloat16}
    assert {one.dtype for one in weights.build("it").parameters()} == {torch.float32}


def test_a_tied_head_that_is_in_the_file_too_is_written_back(tmp_path: Path) -> None:
    source = write_decoder(tmp_path / "source", "qwen3_tied")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    weights = read_checkpoint(source)
    assert weights.model.tied and "lm_head.weight" not in weights.tensors
    llama.write(tmp_path / "back", weights)
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), tensors)


def test_the_mask_is_the_config_s_or_the_tokenizer_s_or_given(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "none", "qwen3", mask_token_id=None)
    with pytest.raises(
        ValueError, match="neither config.json nor a tokenizer beside it has a mask token: give mask_id="
    ):
        read_checkpoint(folder)
    assert read_checkpoint(folder, mask_id=3).sizes["mask_id"] == 3
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"mask_token": "<|mask|>", "added_tokens_decoder": {"9": {"content": "<|mask|>"}}})
    )
    assert read_checkpoint(folder).sizes["mask_id"] == 9
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "[M]"}}))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": {"vocab": {"[M]": 11}}}))
    assert read_checkpoint(folder).sizes["mask_id"] == 11
    with pytest.raises(ValueError, match="mask_token_id=7, but mask_id=3 was given"):
        read_checkpoint(write_decoder(tmp_path / "said", "qwen3"), mask_id=3)


def test_shift_may_be_said_of_a_conversion(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "shifted", "llama")
    assert read_checkpoint(folder, shift=True).model.shift and not read_checkpoint(folder).model.shift
    with pytest.raises(ValueError, match="to=llama has shift=False, got a network of shift=True"):
        llama.write(tmp_path / "back", read_checkpoint(folder, shift=True))


@pytest.mark.parametrize(
    "kind, changes, complaint",
    [
        ("llada", {"architectures": ["LLaDAMoEModelLM"]}, "must be one of .*MDLM, LLaDAModelLM, DreamModel, .*got LLaDAMoEModelLM"),
        ("qwen3", {"architectures": ["MixtralForCausalLM"]}, "architectures must be one of .*got MixtralForCausalLM"),
        ("llada", {"architectures": ["DreamModel"]}, "not a checkpoint of the format dream: missing .*model.embed_tokens.weight"),
        ("dream", {"architectures": ["LLaDAModelLM"]}, "not a checkpoint of the format llada: missing .*model.transformer.wte.weight"),
        ("llada", {"mask_token_id": ROWS}, f"mask_token_id must be one of the {ROWS} rows of the vocabulary, got {ROWS}"),
        ("dream", {"mask_token_id": -1}, "mask_token_id must be one of the 40 rows of the vocabulary, got -1"),
        ("qwen2", {"num_attention_heads": 8}, r"2 heads of 3 channels for keys \(the tensors: 12 channels\)"),
        ("qwen2", {"num_attention_heads": 5}, r"5 heads of 4 channels for queries \(the tensors: 24 channels\)"),
        ("llama", {"num_key_value_heads": 4}, r"4 heads of 6 channels for keys \(the tensors: 12 channels\)"),
        ("qwen3", {"head_dim": 8}, r"4 heads of 8 channels for queries \(the tensors: 40 channels\)"),
        ("llada", {"n_layers": 3}, r"n_layers=3 \(the tensors: 2\)"),
        ("llama", {"vocab_size": 41}, r"vocab_size=41 \(the tensors: 40\)"),
        ("llama", {"tie_word_embeddings": True}, "tie_word_embeddings=True .the tensors: an output head of its own"),
        ("qwen3_tied", {"tie_word_embeddings": False}, "missing: lm_head.weight 40x24"),
        ("llada", {"include_qkv_bias": True}, r"include_qkv_bias=True \(the tensors: False\)"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"rope must be that of all channels, unscaled"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, r"rope must be that of all channels, unscaled"),
        ("qwen2", {"partial_rotary_factor": 0.5}, r"rope must be that of all channels, unscaled"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window must be False, got True"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must be full_attention, got 'sliding_attention'"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ("llada", {"alibi": True}, "alibi must be False, got True"),
        ("llama", {"num_hidden_layers": "two"}, "num_hidden_layers='two', expected int"),
        ("llama", {"rope_theta": 0.0}, "rope_theta must be above 0, got 0.0"),
        ("llama", {"max_position_embeddings": None}, "expected max_position_embeddings, .*give length="),
    ],
)  # fmt: skip
def test_what_is_not_built_or_contradicts_the_tensors_is_named(
    tmp_path: Path, kind: str, changes: dict[str, Any], complaint: str
) -> None:
    folder = write_decoder(tmp_path / "bad", kind, **changes)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_checkpoint(folder)
    assert str(folder) in str(caught.value)


def test_a_missing_shard_and_an_index_that_names_absent_tensors(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "index", "llada", layout="shards")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.transformer.blocks.0.bias.weight"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match="expected in model-00001-of-00002.safetensors model.transformer.blocks.0.bias.weight, which"
    ):
        read_checkpoint(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ValueError, match="expected these files beside it, found none: model-00002-of-00002.safetensors"
    ):
        read_checkpoint(folder)


def test_rotary_frequencies_in_an_old_file_must_be_those_of_the_config(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "old", "llama")
    tensors = load_file(folder / "model.safetensors")
    theta_5000 = 1 / 5000.0 ** (torch.arange(0, 6, 2) / 6)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = theta_5000
    save_file(tensors, folder / "model.safetensors")
    read_checkpoint(folder)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = theta_5000**2
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match="rope_theta=5000.0 and 6 channels a head do not give model.layers.0.self_attn.rotary_emb"
    ):
        read_checkpoint(folder)


def test_tensors_that_do_not_fit_are_all_listed(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "odd", "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.1.self_attn.o_proj.bias"] = torch.zeros(24)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="missing: norm.weight 24") as caught:
        read_checkpoint(folder)
    assert "unknown: layers.1.self_attn.o_proj.bias 24" in str(caught.value)


def test_formats_that_cannot_say_a_network(tmp_path: Path) -> None:
    own.save(tmp_path / "dit", tiny(), length=LENGTH)
    with pytest.raises(ValueError, match="to=llada takes a decoder, got di4c_lm.DIT"):
        llada.write(tmp_path / "no", read_checkpoint(tmp_path / "dit"))
    assert config_of("llama", reference("llama"))["rope_theta"] == 5000.0


def test_a_released_model_says_what_transformers_says_of_real_text(shared: Path) -> None:
    """SmolLM2-135M, which was made to read forwards, read in both directions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "evaluator"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the folder that DI4C_SHARED names holds no SmolLM2-135M under `evaluator`")
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(text, return_tensors="pt")["input_ids"][
        :, :192
    ]
    network = load_checkpoint(folder, mask_id=0)
    with torch.no_grad():
        features = network(ids, torch.ones(1)).features[:, 0]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
    logits_BDS, hidden_BDH = said(model, ids)
    torch.testing.assert_close(features, hidden_BDH, rtol=1e-4, atol=1e-4)
    found_DS = network.output_head().logits(features[0], torch.zeros(len(features[0]), dtype=torch.int64))
    torch.testing.assert_close(
        found_DS[:, 1:].log_softmax(1), logits_BDS[0, :, 1:].log_softmax(1), rtol=1e-4, atol=1e-4
    )

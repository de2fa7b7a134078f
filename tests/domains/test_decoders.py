"""A decoder's folder with its tokenizer is a model of text and a teacher: its own mask, and no row of its vocabulary without a token."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import di4c_lm
from di4c_lm.checkpoints.load import load_checkpoint, stated_mask
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import load_tokenizer, train_bpe
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.model import TextModel
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.runs import recipe, sample
from di4c_lm.runs.folder import parse_run
from di4c_lm.runs.preflight import faults
from di4c_lm.training.distributed import init_distributed
from tests.checkpoints.decoders import KINDS, reference, said, write_decoder
from tests.domains.test_text import TEXTS

ROWS, LENGTH = 384, 32  # rows of the vocabulary, of which the tokenizer has fewer


def tokenizer_with(*specials: str) -> PreTrainedTokenizerFast:
    """A BPE of 300 entries, and behind them special tokens: of LLaDA the mask is among them, undeclared and not the last."""
    found = PreTrainedTokenizerFast(tokenizer_object=train_bpe(TEXTS, 300), eos_token="<|endoftext|>")
    found.add_special_tokens({"additional_special_tokens": list(specials)})
    return found


def folder_of(path: Path, kind: str, **more: Any) -> Path:
    """Hidden 64, 2 layers, with a tokenizer beside it whose entry before the last is the mask."""
    tokenizer = tokenizer_with("<|mdm_mask|>", "<role>")
    mask_id = tokenizer.convert_tokens_to_ids("<|mdm_mask|>")
    sizes = {"vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 96}
    write_decoder(path, kind, **{"sizes": sizes, "mask_token_id": mask_id, **more})
    tokenizer.save_pretrained(str(path))
    return path


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("decoder") / "llada", "llada")


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_of_a_folder(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path / kind, kind)
    model = di4c_lm.load(folder)
    num_states, mask_id = len(model.tokenizer), model.process.mask_id
    assert num_states < ROWS and mask_id == num_states - 2 and model.tokenizer.mask_token == "<|mdm_mask|>"
    x_t = model.encode(["the cat sat on", "one two"])[:, :16]
    found_BDS = model.logits(x_t)
    assert found_BDS.shape == (2, 16, num_states) and found_BDS.dtype == torch.float32
    torch.testing.assert_close(found_BDS.exp().sum(-1), torch.ones(2, 16))
    logits_BDR, _ = said(reference(kind, vocab_size=ROWS, hidden_size=64, intermediate_size=96), x_t)
    if kind == "dream":
        logits_BDR = torch.cat([logits_BDR[:, :1], logits_BDR[:, :-1]], 1)
    logits_BDR[..., mask_id] = -torch.inf
    expected_BDS = logits_BDR[..., :num_states].log_softmax(-1)
    hidden = x_t == mask_id
    torch.testing.assert_close(found_BDS[hidden], expected_BDS[hidden], rtol=1e-4, atol=1e-5)


def test_a_file_in_bfloat16_runs_in_it(tmp_path: Path) -> None:
    model = di4c_lm.load(folder_of(tmp_path / "narrow", "qwen2", dtype=torch.bfloat16))
    assert {one.dtype for one in model.denoiser.parameters()} == {torch.bfloat16}
    found = model.logits(model.encode("one")[:, :8])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(1, 8))


def test_samples_are_tokens_of_the_tokenizer(llada: Path) -> None:
    model = di4c_lm.load(llada)
    tokens_ND, _ = model.sample_tokens(32, 4, seed=0)
    assert int(tokens_ND.max()) < len(model.tokenizer) and bool((tokens_ND != model.process.mask_id).all())
    assert model.sample(1, steps=2, prompt="the cat", length=12)[0].startswith("the cat")


def test_the_command_samples(llada: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main([f"model={llada}", "steps=2", "length=12", "prompt=the cat", "num_samples=2"]) == 0
    assert capsys.readouterr().out.count("the cat") >= 2


@pytest.mark.parametrize("kind", ["llada", "dream"])
def test_a_saved_model_is_loaded_and_writes_the_same(tmp_path: Path, kind: str) -> None:
    model = di4c_lm.load(folder_of(tmp_path / "teacher", kind))
    mixture = ClassChainSettings(codebook_size=3).over(model.denoiser, torch.Generator().manual_seed(0)).eval()
    student = TextModel(denoiser=mixture, tokenizer=model.tokenizer, length=12)
    student.save_pretrained(tmp_path / "head", backbone="../teacher")
    student.save_pretrained(tmp_path / "merged")
    expected = student.sample_tokens(3, 3, seed=1)[0]
    for name in ("head", "merged"):
        again = di4c_lm.load(tmp_path / name)
        assert torch.equal(again.sample_tokens(3, 3, seed=1)[0], expected), name
        assert again.process.mask_id == model.process.mask_id


@pytest.mark.parametrize("kind", ["llada", "dream", "qwen3_tied"])
def test_a_class_chain_is_trained_on_a_frozen_decoder(tmp_path: Path, kind: str) -> None:
    teacher = folder_of(tmp_path / "teacher", kind, dtype=torch.bfloat16 if kind == "dream" else torch.float32)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{number} {text}"}) + "\n" for number, text in enumerate(TEXTS * 4)))
    words = f"""teacher={teacher} data={texts} recipe=copula mixture.codebook_size=4 data.length=16 train.steps=3
        train.micro_batch_size=4 eval.skip=true run.device=cpu run.threads=1 run.dir={tmp_path / "run"} train.log_every=1"""
    settings: Any = parse_run(DOMAIN, words.split(), program="test")[0]
    assert settings.data.mask_id == stated_mask(teacher) and settings.data.tokenizer == str(teacher)
    assert recipe.run(DOMAIN, settings) == 0
    student = di4c_lm.load(tmp_path / "run")
    frozen, given = student.denoiser.network.state_dict(), load_checkpoint(teacher).state_dict()
    assert all(torch.equal(frozen[name].float(), given[name]) for name in given)
    tokens_ND, _ = student.sample_tokens(8, 2, seed=0)
    assert int(tokens_ND.max()) < len(student.tokenizer) and bool((tokens_ND != student.process.mask_id).all())
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) >= 3 and all(loss == loss for loss in losses)


def test_a_mask_that_the_tokenizer_does_not_have(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "beyond", "llada", mask_token_id=350)
    with pytest.raises(
        ValueError, match=r"its tokenizer: the mask must be one of the tokenizer's \d+ entries, got 350"
    ):
        di4c_lm.load(folder)


def test_a_mask_right_behind_the_tokenizer_is_added(tmp_path: Path) -> None:
    size = len(tokenizer_with("<|mdm_mask|>", "<role>"))
    model = di4c_lm.load(folder_of(tmp_path / "behind", "qwen3", mask_token_id=size))
    assert model.process.mask_id == model.tokenizer.mask_token_id == size == len(model.tokenizer) - 1


def test_a_tokenizer_of_more_entries_than_rows_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96}
    with pytest.raises(ValueError, match="its network has 300 states, the tokenizer 302"):
        di4c_lm.load(folder_of(tmp_path / "few", "llama", sizes=sizes, mask_token_id=5))


def test_another_mask_than_the_teacher_s_is_refused(llada: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{number} {text}"}) + "\n" for number, text in enumerate(TEXTS * 4)))
    words = f"teacher={llada} data={texts} recipe=copula data.mask_id=5 data.length=16 eval.skip=true run.dir={tmp_path / 'r'}"
    settings: Any = parse_run(DOMAIN, words.split(), program="test")[0]
    data = DOMAIN.data(settings, init_distributed("cpu"), tmp_path)
    with pytest.raises(
        ValueError, match=re.escape(f"data.mask_id must be {stated_mask(llada)}, the mask of {llada}, got 5")
    ):
        DOMAIN.read(llada, settings, data)


def test_load_tokenizer_with_a_mask_of_its_own(tmp_path: Path) -> None:
    tokenizer_with("<m>", "<role>").save_pretrained(str(tmp_path))
    last = load_tokenizer(DataConfig(tokenizer=str(tmp_path)), (), tmp_path)
    mask_id = last.get_vocab()["<m>"]
    own = load_tokenizer(DataConfig(tokenizer=str(tmp_path), mask_id=mask_id), (), tmp_path)
    assert last.mask_token_id == len(last) - 1 and own.mask_token == "<m>" and len(own) == len(last) - 1
    assert own.bos_token_id == own.eos_token_id is not None
    with pytest.raises(ValueError, match="mask_id must be an id of at least 0, or null, got -1"):
        DataConfig(mask_id=-1)
    assert "mask_id" in DataConfig().unused()


def test_dream_s_tokenizer_is_read_without_its_code(tmp_path: Path) -> None:
    """Its folder has entries and merges, and names a class of its own, in whose place Qwen2's reads them."""
    plain = json.loads(train_bpe(TEXTS, 300).to_str())["model"]
    entries = [
        entry for entry, _ in sorted(plain["vocab"].items(), key=lambda item: item[1]) if entry != "<|endoftext|>"
    ]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in plain["merges"]]
    size = len(entries)
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {
        str(size + i): {"content": name, **special} for i, name in enumerate(("<|endoftext|>", "<|mask|>", "<|im|>"))
    }
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": added,
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    sizes = {"vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 96}
    write_decoder(tmp_path, "dream", sizes=sizes, mask_token_id=size + 1)
    (tmp_path / "vocab.json").write_text(json.dumps({entry: number for number, entry in enumerate(entries)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenization_dream.py").write_text("raise SystemExit('remote code was run')")
    model = di4c_lm.load(tmp_path)
    assert model.process.mask_id == model.tokenizer.mask_token_id == size + 1 == len(model.tokenizer) - 2
    assert model.sample(1, steps=2, prompt="the cat", length=12)[0].startswith("the cat")


def lora_settings(teacher: Path, folder: Path, *words: str) -> Any:
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{number} {text}"}) + "\n" for number, text in enumerate(TEXTS * 4)))
    given = f"""teacher={teacher} data={texts} data.length=16 train.steps=3 train.micro_batch_size=4 eval.skip=true run.device=cpu
        run.threads=1 run.dir={folder / "run"} lora.rank=2 optim.warmup_steps=0 optim.ema_decay=0.0"""
    return parse_run(DOMAIN, [*given.split(), *words], program="test")[0]


@pytest.mark.parametrize(
    "words",
    [
        ("objective=sdtt",),
        ("objective=mdlm", "objective.init=teacher", "train.dtype=bfloat16"),
        ("objective=di4c", "mixture=adaln", "mixture.freeze_backbone=false", "objective.num_lambdas=2"),
    ],
)
def test_low_rank_adapters_are_trained_and_merged(llada: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    pytest.importorskip("peft")
    settings = lora_settings(llada, tmp_path, *words, "lora.targets=[q_proj,down_proj]")
    assert recipe.run(DOMAIN, settings) == 0
    student = di4c_lm.load(tmp_path / "run").denoiser
    network, given = getattr(student, "network", student), load_checkpoint(llada).state_dict()
    found = network.state_dict()
    assert found.keys() == given.keys()
    moved = {name for name in given if not torch.equal(found[name], given[name])}
    assert moved == {name for name in given if "q_proj" in name or "down_proj" in name}
    change = found["layers.0.self_attn.q_proj.weight"] - given["layers.0.self_attn.q_proj.weight"]
    assert torch.linalg.matrix_rank(change, atol=1e-5 * float(change.norm())) <= 2


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_peft_loads_the_adapters_and_says_what_the_student_says(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    teacher = folder_of(tmp_path / kind, kind)
    settings = lora_settings(teacher, tmp_path, "objective=sdtt", "lora.targets=[q_proj,down_proj]", "optim.lr=0.05")
    assert recipe.run(DOMAIN, settings) == 0
    sizes = {"vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 96}
    base, student = reference(kind, **sizes), di4c_lm.load(tmp_path / "run")
    x_t = student.encode(["the cat sat on"])[:, :16]
    before, _ = said(base, x_t)
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapters"))
    assert adapted.peft_config["default"].base_model_name_or_path == str(teacher)
    logits_BDV, _ = said(adapted.get_base_model(), x_t)
    found_BDS = student.logits(x_t)
    num_states, mask_id = found_BDS.shape[2], student.mask_id
    wanted_BDS = logits_BDV[..., :num_states].clone()
    wanted_BDS[..., mask_id] = -torch.inf
    is_masked_BD = x_t == mask_id
    shown, found = (one[is_masked_BD].log_softmax(-1).exp() for one in (wanted_BDS, found_BDS))
    torch.testing.assert_close(found, shown, rtol=1e-4, atol=1e-5)
    assert (before - logits_BDV).abs().max() > 1e-2


def test_adapters_have_the_names_of_their_checkpoint(llada: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from safetensors import safe_open

    assert recipe.run(DOMAIN, lora_settings(llada, tmp_path, "objective=sdtt", "lora.targets=[down_proj]")) == 0
    with safe_open(tmp_path / "run" / "adapters" / "adapter_model.safetensors", "pt") as file:
        names = {*file.keys()}
    start = "base_model.model.model.transformer.blocks"
    assert names == {f"{start}.{block}.ff_out.lora_{letter}.weight" for block in (0, 1) for letter in "AB"}


@pytest.mark.parametrize(
    "words, complaint",
    [
        (
            ("lora.targets=[o_projection]",),
            "lora.targets must be ends of the names of linear maps, which are q_proj, k_proj",
        ),
        (("recipe=copula", "lora.targets=[q_proj]"), "lora.rank must be 0 where mixture.freeze_backbone=true"),
        (("lora.targets=[]",), "lora.targets must be at least one name"),
    ],
)
def test_adapters_that_cannot_be_are_refused_before_anything_is_built(
    llada: Path, tmp_path: Path, words: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words if "recipe=copula" in words else ("objective=sdtt", *words)
    try:
        said = "\n".join(faults(DOMAIN, lora_settings(llada, tmp_path, *words)))
    except SystemExit:
        said = capsys.readouterr().err
    assert complaint in said


def test_without_peft_the_extra_is_named(llada: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("di4c_lm.runs.preflight.find_spec", lambda name: None if name == "peft" else object())
    settings = lora_settings(llada, tmp_path, "objective=sdtt", "lora.targets=[q_proj]")
    assert any("peft is not installed: the extra [lora]" in one for one in faults(DOMAIN, settings))


@pytest.mark.parametrize("words", [("recipe=copula",), ("objective=sdtt",), ("objective=di4c", "mixture=codes")])
def test_a_student_learns_responses_behind_prompts(llada: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    records = tmp_path / "records.jsonl"
    pairs = (
        {"prompt": f"{number} {text[:10]}", "response": text[10:20] + "."} for number, text in enumerate(TEXTS * 4)
    )
    records.write_text("".join(json.dumps(one) + "\n" for one in pairs))
    given = f"""teacher={llada} data={records} data.records=prompt data.length=32 train.steps=2 train.micro_batch_size=4 eval.skip=true
        run.device=cpu run.threads=1 run.dir={tmp_path / "run"} train.log_every=1 data.skip_bad=true"""
    settings: Any = parse_run(DOMAIN, [*given.split(), *words], program="test")[0]
    assert recipe.run(DOMAIN, settings) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) >= 2 and all(loss == loss for loss in losses)
    student = di4c_lm.load(tmp_path / "run")
    assert student.sample(1, steps=2, prompt="7 the")[0].startswith("7 the")


def test_a_chat_is_answered_block_after_block(llada: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = """steps=2 num_samples=1 length=24 chat=true prompt=one sampler=blocks sampler.block=8 sampler.ahead=true
        sampler.inner=confidence sampler.inner.choice_temperature=0 temperature=0"""
    with pytest.raises(SystemExit):
        sample.main([f"model={llada}", *how.split()])
    assert "the tokenizer must have a chat template, got one without" in capsys.readouterr().err
    chatty = folder_of(tmp_path / "chatty", "llada")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(chatty))
    tokenizer.chat_template = "{% for m in messages %}<role>{{ m['content'] }}.{% endfor %}"
    tokenizer.save_pretrained(str(chatty))
    assert sample.main([f"model={chatty}", *how.split()]) == 0
    said = capsys.readouterr().out
    assert "<role>one." in said and "<|mdm_mask|>" not in said

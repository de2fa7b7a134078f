"""Prompts and responses, and chats, as sequences whose beginnings are given: in files and shards, and what of them is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.data.batches import Batch, BatchStream, noised
from di4c_lm.data.text.corpus import check_corpus, load_corpus
from di4c_lm.data.text.pairs import Pairs, Records
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import train_bpe
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.runs.prepare.shards import main as prepare_shards

TEMPLATE = (
    "{% for m in messages %}{{ '<|im|>' + m['role'] + '\n' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im|>assistant\n{% endif %}"
)
LENGTH = 32


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    texts = ["what is one and one", "one and one is two", "user assistant the cat sat"] * 5
    found = PreTrainedTokenizerFast(tokenizer_object=train_bpe(texts, 300), eos_token="<|endoftext|>")
    found.add_special_tokens({"additional_special_tokens": ["<|im|>", "<|end|>"], "mask_token": "<|mask|>"})
    found.chat_template = template
    return found


def pairs(records: Records = "prompt", **more: Any) -> Pairs:
    return Pairs(**{"tokenizer": tokenizer(), "records": records, "length": LENGTH, **more})


def record(prompt: str = "what is one and one", response: str = "two") -> dict[str, Any]:
    return {"prompt": prompt, "response": response}


def chat(*turns: str) -> dict[str, Any]:
    """Turns of user and assistant."""
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]}


def said(row: Any, of: PreTrainedTokenizerFast) -> tuple[str, str]:
    """What is given of a row, and the rest."""
    *tokens, given = row.tolist()
    return str(of.decode(tokens[:given])), str(of.decode(tokens[given:]))


def test_a_prompt_is_given_and_eos_behind_the_response_is_learned() -> None:
    found = pairs()
    (row,) = found.rows([json.dumps(record())])
    given, rest = said(row, found.tokenizer)
    eos = "<|endoftext|>"
    assert (
        given == "what is one and one"
        and rest.startswith("two" + eos)
        and set(rest.removeprefix("two").split(eos)) == {""}
    )
    assert len(row) == LENGTH + 1 and rest.count(eos) >= 2


def test_a_special_token_s_name_in_a_prompt_is_plain_text() -> None:
    found = pairs()
    (row,) = found.rows([json.dumps(record(prompt="<|end|>"))])
    assert found.tokenizer.convert_tokens_to_ids("<|end|>") not in row[:-1].tolist()


def test_every_answer_of_a_chat_is_a_sequence_behind_all_before_it() -> None:
    found = pairs("chat")
    first, second = (said(row, found.tokenizer) for row in found.rows([json.dumps(chat("one", "two", "and", "three"))]))
    assert first[0] == "<|im|>user\none<|end|><|im|>assistant\n" and first[1].startswith("two<|end|><|endoftext|>")
    assert second[0].endswith("two<|end|><|im|>user\nand<|end|><|im|>assistant\n") and second[1].startswith(
        "three<|end|>"
    )


@pytest.mark.parametrize(
    "records, document, template, complaint",
    [
        ("prompt", record(response="  "), TEMPLATE, "the response must hold text, got an empty one"),
        ("prompt", record(response="one two " * 40), TEMPLATE, r"at most data.length=32 tokens, got \d+ and \d+"),
        ("chat", chat("only a question"), TEMPLATE, "messages must hold one of the role 'assistant', got none"),
        ("chat", chat("one", ""), TEMPLATE, "the response must hold text"),
        (
            "chat",
            chat("a", "b"),
            "{{ raise_exception('no such role') }}",
            "chat template fails: TemplateError: no such role",
        ),
        ("chat", chat("a", "b"), "{{ messages[9]['x']['y'] }}", "chat template fails: UndefinedError"),
        ("chat", chat("a", "b"), "{{ messages|length }}", "must continue a prompt by its answer"),
    ],
)
def test_records_that_make_no_sequence(records: Records, document: Any, template: str, complaint: str) -> None:
    found = pairs(records, tokenizer=tokenizer(template))
    with pytest.raises(ValueError, match=f"the record .*{complaint}.*skip_bad=true"):
        found.rows([json.dumps(document)])
    found.skip_bad = True
    good = json.dumps(record()) if records == "prompt" else json.dumps(document)
    assert len(found.rows([json.dumps(document), good])) == (1 if records == "prompt" else 0) and found.skipped >= 1


def files(folder: Path, rows: list[dict[str, Any]], kind: str = "jsonl") -> Path:
    path = folder / f"records.{kind}"
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(folder: Path, path: Path, **more: Any) -> DataConfig:
    if not (folder / "tokenizer").exists():
        tokenizer().save_pretrained(str(folder / "tokenizer"))
    chosen = {
        "kind": "files",
        "path": str(path),
        "tokenizer": str(folder / "tokenizer"),
        "length": LENGTH,
        "max_lost": 1.0,
    }
    return DataConfig(**{**chosen, "records": "prompt", "validation_share": 0.2, **more})


RECORDS = [record(f"{number} and one", f"is {number + 1}") for number in range(40)]
CHATS = [chat(f"{number} and one", f"{number + 1}") for number in range(40)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("records, rows", [("prompt", RECORDS), ("chat", CHATS)])
def test_files(tmp_path: Path, kind: str, records: Records, rows: list[dict[str, Any]]) -> None:
    corpus = load_corpus(config(tmp_path, files(tmp_path, rows, kind), records=records), 0, tmp_path)
    batch = corpus.train.read(0, len(corpus.train))  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    assert batch.given is not None and len(batch.x) + len(corpus.validation) == 40
    texts = {
        str(corpus.tokenizer.decode(row[given:], skip_special_tokens=True))
        for row, given in zip(batch.x, batch.given, strict=True)
    }
    answers = {row["response"] if records == "prompt" else row["messages"][1]["content"] for row in rows}
    assert texts <= answers and len(texts) > 20


@pytest.mark.parametrize(
    "row, records, complaint",
    [
        ({"prompt": "a"}, "prompt", r":2: no key 'response' \(data.records=prompt\), found \['prompt'\]"),
        ({"prompt": "a", "response": 5}, "prompt", ":2: the value of 'response' is not a text but int"),
        ({"messages": "hello"}, "chat", ":2: the value of 'messages' is not a list of objects"),
        ({"text": "a"}, "chat", r":2: no key 'messages'"),
    ],
)
def test_records_of_another_form_are_named_by_file_and_line(
    tmp_path: Path, row: Any, records: Records, complaint: str
) -> None:
    good = (RECORDS if records == "prompt" else CHATS)[0]
    with pytest.raises(ValueError, match=complaint):
        load_corpus(config(tmp_path, files(tmp_path, [good, row]), records=records), 0, tmp_path)


def test_what_goes_with_no_records(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo")
    with pytest.raises(ValueError, match=r"records must be in .jsonl, .json or .parquet where data.records=prompt"):
        load_corpus(config(tmp_path, path), 0, tmp_path)
    with pytest.raises(ValueError, match="data.tokenizer must be a folder, file or hub name where data.records=prompt"):
        check_corpus(config(tmp_path, files(tmp_path, RECORDS), tokenizer="train"))
    tokenizer(None).save_pretrained(str(tmp_path / "bare"))
    with pytest.raises(
        ValueError, match="data.records must be prompt, or text, where the tokenizer has no chat template"
    ):
        check_corpus(config(tmp_path, files(tmp_path, CHATS), records="chat", tokenizer=str(tmp_path / "bare")))
    with pytest.raises(ValueError, match="wrap must be false where records=prompt"):
        DataConfig(records="prompt", wrap=True)


@pytest.mark.parametrize(
    "words, complaint",
    [
        (("evaluator.num_blocks=2",), "evaluator.num_blocks must be left out where data.records=prompt"),
        (("data.packing=true", "mixture=sequential"), "mixture must be class_chain where data.records=prompt and"),
        (("data.packing=true", "data.buckets=[8]"), "data.buckets must be left out where packing=true"),
        (("data.buckets=[8,64]",), "data.buckets must be rising lengths of at least 2 and below length=64"),
        (("data.joined=true",), "data.joined must be left out where data.packing=false"),
        (("data.records=text", "data.packing=true"), "data.packing must be left out where data.records=text"),
        (("objective=di4c", "mixture=codes", "objective.positions=all"), "objective.positions must be masked where"),
        (
            ("objective=denoising", "model={process: uniform, time_conditioning: true}"),
            "data.records must be text where",
        ),
    ],
)
def test_settings_that_go_with_none(tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    given = [f"data={files(tmp_path, RECORDS)}", "data.records=prompt", "eval.skip=true"]
    with pytest.raises(ValueError, match=complaint):
        compose(TextSettings, [*given, *words], CONFIGS, "text")
    compose(TextSettings, given, CONFIGS, "text")


@pytest.mark.parametrize("records, rows", [("prompt", RECORDS), ("chat", CHATS)])
def test_shards_hold_the_same(tmp_path: Path, records: Records, rows: list[dict[str, Any]]) -> None:
    made = config(tmp_path, files(tmp_path, rows), records=records)
    words = [f"out={tmp_path / 'shards'}", f"path={made.path}", f"tokenizer={made.tokenizer}", f"length={LENGTH}"]
    assert prepare_shards([*words, f"records={records}", "validation_share=0.2", "shard_tokens=256"]) == 0
    prepared = load_corpus(config(tmp_path, tmp_path / "shards", kind="shards", records=records), 0, tmp_path)
    plain = load_corpus(made, 0, tmp_path)

    def rows_of(corpus: Any) -> list[list[int]]:
        batch = corpus.train.read(0, len(corpus.train))
        return sorted(torch.cat([batch.x, batch.given[:, None]], 1).tolist())

    assert rows_of(prepared) == rows_of(plain)
    assert sorted(prepared.validation.tolist()) == sorted(plain.validation.tolist())
    assert prepared.validation_texts == plain.validation_texts
    with pytest.raises(ValueError, match=f'data.records="text", but the shards in .* were prepared with "{records}"'):
        load_corpus(config(tmp_path, tmp_path / "shards", kind="shards", records="text"), 0, tmp_path)


def test_what_is_given_is_never_masked() -> None:
    x, given = torch.arange(24).view(3, 8), torch.tensor([0, 3, 8])
    batch = Batch(x=x, sample_id=torch.arange(3), epoch=torch.zeros(3, dtype=torch.int64), given=given)
    x_t = noised(MaskedProcess(99), batch, torch.tensor([1.0, 1.0, 1.0]), KeyedRng(0, torch.arange(3)))
    assert torch.equal((x_t == x)[1, :3], torch.ones(3, dtype=torch.bool)) and torch.equal(x_t[2], x[2])
    assert bool((x_t[0] == 99).sum() >= 6) and bool((x_t[1, 3:] == 99).sum() >= 4)


def test_the_number_goes_with_its_sequence_on_any_number_of_ranks(tmp_path: Path) -> None:
    corpus = load_corpus(config(tmp_path, files(tmp_path, RECORDS)), 0, tmp_path)
    one = next(BatchStream(corpus.train, micro_batch_size=6))
    two = [next(BatchStream(corpus.train, micro_batch_size=3, rank=rank, world_size=2)) for rank in (0, 1)]
    assert one.given is not None
    assert one.given.tolist() == [
        n for batch in two for n in (batch.given if batch.given is not None else torch.zeros(0)).tolist()
    ]
    assert np.array_equal(one.x, torch.cat([batch.x for batch in two]))

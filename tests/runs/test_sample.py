"""The sampling tool: any checkpoint, any sampler, prompts, steps shown, files written, bad input refused."""

import json
import logging
import re
from pathlib import Path

import pytest

from di4c_lm.checkpoints.mdlm import write
from di4c_lm.domains.text.model import TextModel
from di4c_lm.runs import sample as tool


@pytest.fixture(scope="module")
def student(texts: dict[str, TextModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    texts["student"].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(texts: dict[str, TextModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    texts["teacher"].save_pretrained(folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert tool.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [
        ("sampler=ancestral", "grid=optimised", "hold_lambda=true"),
        ("sampler=first_hitting", "top_p=0.9"),
        ("sampler=remasking", "sampler.eta=0.3", "grid=cosine"),
        ("sampler=blocks", "sampler.inner=confidence", "length=20"),
        ("sampler=analytic", "noise=legacy_fp32", "grid=[1,0.5,0]"),
    ],
)
def test_prompts_begin_the_texts_and_files_hold_them(capsys, student: Path, tmp_path: Path, more) -> None:
    out, text = tmp_path / "out.jsonl", tmp_path / "out.txt"
    words = [f"model={student}", "steps=2", "num_samples=2", "prompt=the cat", "prompt=one: two", *more]
    printed = run(capsys, *words, "--show-steps", f"jsonl={out}", f"text={text}")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["the cat", "the cat", "one: two", "one: two"]
    for row in rows:
        assert row["text"].startswith(row["prompt"])
        assert len(row["tokens"]) == (20 if "length=20" in more else 12)
        assert row["nfe"] > 0
        assert row["text"] in printed
        assert row["text"] in text.read_text()
    assert "step   1, " in printed
    assert row["settings"]["sampler"] == more[0].partition("=")[2]


def test_prompts_come_from_a_file(capsys, student: Path, tmp_path: Path) -> None:
    lines, objects = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    lines.write_text("the dog\n\none two\n")
    objects.write_text('{"prompt": "the dog"}\n{"prompt": "one two"}\n')
    printed = [run(capsys, f"model={student}", "num_samples=1", f"prompts_file={p}") for p in (lines, objects)]
    assert printed[0] == printed[1]
    assert "\nthe dog" in printed[0] and "\none two" in printed[0]


def test_a_teacher_in_a_published_format_takes_a_tokenizer(capsys, teacher: Path, tmp_path: Path) -> None:
    from di4c_lm.checkpoints.load import read_checkpoint

    write(tmp_path / "mdlm", read_checkpoint(teacher))
    plain = run(capsys, f"model={teacher}", "num_samples=2")
    converted = run(capsys, f"model={tmp_path / 'mdlm'}", f"tokenizer={teacher}", "num_samples=2")
    assert plain == converted


def test_the_hybrid_takes_two_checkpoints(capsys, student: Path, teacher: Path) -> None:
    words = [f"model={student}", "num_samples=1", "steps=3"]
    all_teacher = run(capsys, *words, "hybrid_last=3", f"teacher={teacher}")
    assert all_teacher.splitlines()[1:] != run(capsys, *words).splitlines()[1:]


def test_help_lists_keys_and_samplers(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        tool.main(["sampler=remasking", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for word in ("top_p=1.0", "first_hitting_parallel", "sampler.eta=0.02", "jsonl=null", "show_steps=false"):
        assert word in printed


@pytest.mark.parametrize(
    "words, message",
    [
        (["sampler=gibbs"], "sampler must be one of ancestral"),
        (["sampler=remasking", "sampler.sigma=1"], "there is no key sampler.sigma"),
        (["num_samples=0"], "num_samples must be"),
        (["steps=0"], "steps must be"),
        (["top_p=1.5"], "top_p must be in (0, 1]"),
        (["temperature=-1.0"], "temperature must be at least 0"),
        (["grid=sine"], "grid must be one of uniform, cosine, published, optimised, fewest"),
        (["grid=[1,0.5]"], "grid must be times that descend from 1 to 0"),
        (["noise=half"], "noise"),
        (["depth=3"], "depth"),
        (["prompt=" + "the cat " * 20], "exceeds the sequence of 12"),
        (
            ["length=20"],
            "length must be at most the context of 12 where sampler=ancestral, got 20: longer text takes sampler=blocks",
        ),
        (["sampler=confidence", "sampler.guidance=2.0"], "there is no key sampler.guidance"),
        (["sampler=hybrid"], "sampler=hybrid is hybrid_last=<steps of the teacher> now"),
        (["hybrid_last=1"], "name one by teacher="),
        (["teacher=x"], "teacher must be left out where hybrid_last=0"),
        (["prompts_file=absent.txt"], "absent.txt"),
        (["prompt=a", "prompts_file=absent.txt"], "absent where prompt is given"),
        (["model=nowhere/at/all"], "nowhere"),
    ],
)
def test_bad_input_ends_with_status_2(capsys, student: Path, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        tool.main([f"model={student}", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_empty_or_broken_prompts_file_is_refused(capsys, student: Path, tmp_path: Path) -> None:
    for name, text, message in (("a.txt", "\n", "holds no prompt"), ("b.jsonl", '{"text": "x"}\n', "line 1")):
        (tmp_path / name).write_text(text)
        with pytest.raises(SystemExit):
            tool.main([f"model={student}", f"prompts_file={tmp_path / name}"])
        assert message in capsys.readouterr().err


def test_texts_are_printed_as_their_batch_is_done_and_the_speed_at_the_end(
    capsys, caplog, student: Path, monkeypatch
) -> None:
    """While the second batch is sampled, the first is printed already."""
    seen: list[str] = []
    whole = TextModel.sample_tokens

    def watched(self: TextModel, *arguments, on_batch, **named):
        def done(first: int, batch) -> None:
            on_batch(first, batch)
            seen.append(capsys.readouterr().out)

        return whole(self, *arguments, on_batch=done, **named)

    monkeypatch.setattr(TextModel, "sample_tokens", watched)
    with caplog.at_level(logging.INFO):
        run(capsys, f"model={student}", "steps=1", "num_samples=3", "batch_size=2")
    assert [printed.count("--- ") for printed in seen] == [2, 1] and "--- 3/3 (" in seen[1]
    assert re.search(r"3 texts, 36 tokens in [\d.]+ s: [\d,]+ tokens/s", caplog.text)

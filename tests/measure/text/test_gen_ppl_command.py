"""The words that `eval/gen_ppl.py` takes."""

import dataclasses

import pytest

from di4c_lm.core.cli import parse_words
from di4c_lm.measure.text.gen_ppl_settings import GenPplConfig


def test_words_choose() -> None:
    words = ["run=outputs/a", "steps=[1,2,4]", "evaluator=gpt2-large", "num_samples=8", "conditional=true", "eos=mdlm"]
    config = parse_words(GenPplConfig, words, "eval/gen_ppl.py")
    assert (config.run, config.steps, config.evaluator) == ("outputs/a", (1, 2, 4), "gpt2-large")
    assert (config.num_samples, config.conditional, config.eos) == (8, True, "mdlm")


def test_help_lists_and_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_words(GenPplConfig, ["--help"], "eval/gen_ppl.py")
    assert end.value.code == 0
    said, defaults = capsys.readouterr().out.split("run=null")
    for field in dataclasses.fields(GenPplConfig):  # pyright: ignore[reportArgumentType]
        assert f"    {field.name} " in said
        assert field.name == "run" or f"  {field.name}=" in defaults


@pytest.mark.parametrize(
    "word, told",
    [
        ("num_samples=0", ["num_samples", "0", "at least 2"]),
        ("num_samples=many", ["num_samples", "'many'", "integer"]),
        ("samples=8", ["'samples'", "8", "num_samples"]),
        ("steps=[0]", ["steps", "0", "at least 1"]),
        ("steps=4", ["steps", "4"]),
        ("eos=last", ["eos", "'last'", "'all', 'first' or 'mdlm'"]),
        ("conditional=perhaps", ["conditional", "'perhaps'", "boolean"]),
        ("prompts=1", ["prompts", "1", "at least 2"]),
        ("seed=-1", ["seed", "-1", "at least 0"]),
        ("loose", ["'loose'", "key=value"]),
    ],
)
def test_bad_words_end_with_status_2(word: str, told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_words(GenPplConfig, [word], "eval/gen_ppl.py")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and all(part in error for part in told), error

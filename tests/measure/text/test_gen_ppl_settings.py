from typing import Any

import pytest

from di4c_lm.measure.text.gen_ppl_settings import GenPplConfig, Prompting


def test_the_parts_carry_the_settings() -> None:
    config = GenPplConfig(
        steps=(1, 4), num_samples=8, evaluator_batch_size=3, eos="first", prompts=5, overflow="truncate"
    )
    assert (config.evaluation().steps, config.evaluation().num_samples) == ((1, 4), 8)
    assert (config.scoring().batch_size, config.scoring().eos, config.scoring().overflow) == (3, "first", "truncate")
    assert config.prompting().prompts == 5


def test_prompts_scale_to_the_context() -> None:
    def lengths(prompting: Prompting, length: int) -> tuple[int, int]:
        fitted = prompting.fit(length)
        return fitted.prompt_length, fitted.continuation_length

    assert lengths(Prompting(), 1024) == (50, 50)
    assert lengths(Prompting(), 64) == (32, 32)
    assert lengths(Prompting(prompt_length=10), 64) == (10, 50)
    assert lengths(Prompting(prompt_length=60, continuation_length=2), 64) == (60, 2)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"prompt_length": 64}, "prompt_length must be 1 to 63, .* got 64"),
        ({"prompt_length": 32, "continuation_length": 33}, "continuation_length must be 1 to 32, .*, got 33"),
    ],
)
def test_prompts_that_do_not_fit(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompting(**given).fit(64)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"steps": (0,)}, "steps"),
        ({"steps": ()}, "steps"),
        ({"steps": (2, 2)}, "steps must be .*that differ"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": "8"}, "num_samples"),
        ({"evaluator_batch_size": 0}, "evaluator_batch_size"),
        ({"prompts": 1}, "prompts must be at least 2.* got 1"),
        ({"continuations": 0}, "continuations must be .*at least 1, got 0"),
        ({"seed": -1}, "seed"),
        ({"eos": "last"}, "eos"),
        ({"samples": 8}, "samples"),
    ],
)
def test_bad_settings_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenPplConfig(**given)

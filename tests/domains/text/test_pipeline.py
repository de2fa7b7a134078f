"""A model of text as a pipeline of diffusers: saved, loaded and sampled from."""

from pathlib import Path

import pytest
import torch

from tests.measure.models import text_model

pytest.importorskip("diffusers")


@pytest.mark.parametrize("codes, window", [(0, None), (3, "classes")])
def test_it_is_saved_loaded_and_sampled_from(codes: int, window: str | None, tmp_path: Path) -> None:
    from di4c_lm.domains.text.pipeline import TextPipeline

    model = text_model(length=6, codes=codes, window=window)
    pipeline = TextPipeline.of(model)
    pipeline.save_pretrained(str(tmp_path / "pipeline"))
    again = TextPipeline.from_pretrained(str(tmp_path / "pipeline"))
    said = [
        one(["aa", "ab ab"], 3, num_texts_per_prompt=2, generator=torch.Generator().manual_seed(5))
        for one in (pipeline, again)
    ]
    assert said[0].texts == said[1].texts and len(said[1].texts) == 4 and 0 < said[1].nfe <= 3
    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(5)))
    assert said[1].texts == model.sample(2, steps=3, prompt=["aa", "ab ab"], seed=seed)
    assert all(text.startswith("aa") for text in said[1].texts[:2])
    assert (tmp_path / "pipeline" / "model_index.json").is_file()


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    from di4c_lm.domains.text.pipeline import TextPipeline

    with pytest.raises(ValueError, match="prompt of 4 tokens exceeds the sequence of 3"):
        TextPipeline.of(text_model())("aa aa aa aa")

"""Documents as vectors: the closed form of the Fisher score against autograd, padding that does not matter; MAUVE offline."""

from typing import Any

import numpy as np
import pytest
import torch

from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.features import encode, hand_features, mauve_score
from di4c_lm.measure.text.perplexity import Document
from tests.measure.tiny import gpt2

RNG = torch.Generator().manual_seed(0)
TOKENS = torch.randint(11, (4, 12), generator=RNG)


def _evaluator() -> Evaluator:
    return Evaluator(model=gpt2().float(), tokenizer=None, name="tiny")


def _documents(*lengths: int) -> list[Document]:
    return [Document(ids=tuple(row[:n].tolist())) for row, n in zip(TOKENS, lengths, strict=True)]


def test_the_score_is_the_gradient() -> None:
    evaluator, document = _evaluator(), _documents(12, 12, 12, 12)[1]
    ids = torch.tensor([document.ids])
    model: Any = evaluator.model
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1].detach()
    weight = model.get_output_embeddings().weight.detach()
    nudge = torch.zeros(8, 8, requires_grad=True)
    log_p = ((hidden + hidden @ nudge.T) @ weight.T).log_softmax(-1)
    log_p[0, :-1].gather(1, ids[0, 1:, None]).mean().backward()
    assert nudge.grad is not None
    found = encode(evaluator, [document], batch_size=1)["score"][0]
    assert np.allclose(found, nudge.grad.flatten().numpy(), atol=1e-6)


def test_projected_scores_are_fixed_and_smaller() -> None:
    assert encode(_evaluator(), _documents(12, 9, 5, 12), batch_size=4, rank=3)["score"].shape == (4, 9)


def test_the_batch_size_does_not_matter() -> None:
    one, four = (encode(_evaluator(), _documents(12, 9, 5, 12), batch_size=n) for n in (1, 4))
    for name in ("mean", "last", "score"):
        assert np.allclose(one[name], four[name], atol=1e-5)


@pytest.mark.parametrize("length", [1, 17])
def test_a_document_that_the_encoder_cannot_read_is_named(length: int) -> None:
    with pytest.raises(
        ValueError, match=f"document 0 has {length} tokens under the feature model 'tiny', which reads 2 to 16"
    ):
        encode(_evaluator(), [Document(ids=(1,) * length)], batch_size=1)


def test_hand_features_tell_a_constant_sample() -> None:
    constant = torch.full((1, 12), 3)
    found = hand_features(torch.cat([TOKENS, constant]), TOKENS)
    assert found.shape == (5, 7) and np.isfinite(found).all()
    assert found[-1, 0] == 0 and found[-1, 1] == pytest.approx(11 / 12) and (found[:4, 1] < 0.6).all()


NORMAL = np.random.default_rng(0)
DATA = NORMAL.normal(size=(80, 8))


def test_like_is_above_unlike_and_a_tiled_text_is_lowest() -> None:
    like = mauve_score(NORMAL.normal(size=(80, 8)), DATA, seeds=(0, 1, 2))[0]
    moved = mauve_score(NORMAL.normal(size=(80, 8)) + 2, DATA, seeds=(0, 1, 2))[0]
    tiled = mauve_score(np.repeat(DATA[:1], 80, 0), DATA, seeds=(0, 1, 2))[0]
    assert like > 0.8 and moved < 0.5 * like and tiled < 0.2 * like


def test_seeds_make_the_deviation_and_reproduce() -> None:
    sample = NORMAL.normal(size=(40, 8)) + 0.8
    one, again = mauve_score(sample, DATA, seeds=(3,)), mauve_score(sample, DATA, seeds=(3,))
    assert one == again and one[1] == 0
    assert mauve_score(sample, DATA, seeds=(0, 1, 2, 3))[1] > 0


def test_too_little_is_named() -> None:
    with pytest.raises(ValueError, match="at least 8 documents of each, got 5 and 80"):
        mauve_score(DATA[:5], DATA, seeds=(0,))
    with pytest.raises(ValueError, match="mauve_seeds"):
        mauve_score(DATA, DATA, seeds=())
    with pytest.raises(ValueError, match="mauve_clusters must be .* got 99"):
        mauve_score(DATA, DATA, seeds=(0,), clusters=99)

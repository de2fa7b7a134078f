"""MAUVE from features, offline."""

import numpy as np
import pytest

from di4c_lm.measure.text.mauve import mauve_score

RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(80, 8))


def test_like_is_above_unlike_and_a_tiled_text_is_lowest() -> None:
    like = mauve_score(RNG.normal(size=(80, 8)), DATA, seeds=(0, 1, 2)).estimate
    moved = mauve_score(RNG.normal(size=(80, 8)) + 2, DATA, seeds=(0, 1, 2)).estimate
    tiled = mauve_score(np.repeat(DATA[:1], 80, 0), DATA, seeds=(0, 1, 2)).estimate
    assert like > 0.8 and moved < 0.5 * like and tiled < 0.2 * like


def test_seeds_make_the_deviation_and_reproduce() -> None:
    sample = RNG.normal(size=(40, 8)) + 0.8
    one, again = mauve_score(sample, DATA, seeds=(3,)), mauve_score(sample, DATA, seeds=(3,))
    assert one == again and one.deviation == 0 and one.clusters == 4
    assert mauve_score(sample, DATA, seeds=(0, 1, 2, 3)).deviation > 0


def test_too_little_is_named() -> None:
    with pytest.raises(ValueError, match="at least 8 documents of each, got 5 and 80"):
        mauve_score(DATA[:5], DATA, seeds=(0,))
    with pytest.raises(ValueError, match="mauve_seeds"):
        mauve_score(DATA, DATA, seeds=())
    with pytest.raises(ValueError, match="mauve_clusters=99"):
        mauve_score(DATA, DATA, seeds=(0,), clusters=99)

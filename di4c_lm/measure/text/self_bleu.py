"""Self-BLEU (Zhu et al. 2018): how much of each sample is said by the others too, from 0 to 100; lower is more varied."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_WEIGHTS = (0.25, 0.25, 0.25, 0.25)


def self_bleu(texts: Sequence[str], *, legacy: bool = False) -> Float[ndarray, " N"]:
    """BLEU-4 of each text against all others, by `nltk`, smoothed by its method 1.

    Over words (split at white space); texts come without their prompts. `legacy`: over characters, as the published evaluations of SDTT and
    Di4C have it by handing strings to nltk (give them with their prompts, as they do); its scale is another.
    Raises `ValueError` for fewer than 2 texts, and names an empty one.
    """
    if len(texts) < 2:
        raise ValueError(f"Self-BLEU needs at least 2 samples, got {len(texts)}")
    split = [list(text) if legacy else text.split() for text in texts]
    for i, words in enumerate(split):
        if not words:
            raise ValueError(f"sample {i} is empty: Self-BLEU needs at least one word")
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    return 100 * np.array(
        [
            float(sentence_bleu(split[:i] + split[i + 1 :], words, _WEIGHTS, smooth))  # pyright: ignore[reportArgumentType]
            for i, words in enumerate(split)
        ]
    )

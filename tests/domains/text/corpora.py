"""A corpus of which each part has a token of its own."""

import numpy as np
import torch

from di4c_lm.data.batches import PackedSource
from di4c_lm.data.text.corpus import Corpus
from tests.measure.tiny import words

TRAINING, ASIDE = torch.full((4, 8), 2), torch.full((3, 8), 3)
CORPUS = Corpus(
    name="tiny",
    tokenizer=words("a", "b"),
    train=PackedSource(TRAINING.numpy().astype(np.uint16), 0),
    evaluator=ASIDE,
    validation=torch.full((2, 8), 4),
    validation_texts=["x"],
    fingerprint="0",
)

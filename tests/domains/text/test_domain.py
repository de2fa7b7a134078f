"""What a run of text learns from."""

import torch

from di4c_lm.domains.text.domain import TextData
from tests.domains.text.corpora import ASIDE, CORPUS, TRAINING


def test_what_mixtures_begin_with_is_counted_in_training_text_alone() -> None:
    """The bigram table of a class chain, among others: nothing of the validation set, nothing of the evaluator's share."""
    sequences = TextData(corpus=CORPUS, length=TRAINING.shape[1]).first_sequences(seed=0)
    assert torch.equal(sequences, TRAINING)
    assert not set(sequences.flatten().tolist()) & set(torch.cat([CORPUS.validation, ASIDE]).flatten().tolist())

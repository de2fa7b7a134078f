"""A language whose law is known, a chain of words, with an evaluator and a tokenizer to go with it."""

from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from di4c_lm.measure.text.evaluator import Evaluator
from tests.measure.tiny import words

STATES, LENGTH = 40, 32  # words, and tokens a text
_SHARP = 2.0


def tokenizer() -> Any:
    return words(*(f"w{i}" for i in range(STATES)))


def _table(seed: int = 0) -> Tensor:
    """p(next word | word), each row a word's."""
    logits = _SHARP * torch.randn(STATES, STATES, generator=torch.Generator().manual_seed(seed))
    return logits.softmax(1)


def text(num: int, *, seed: int, flat: float = 0.0) -> Int[Tensor, "N D"]:
    """Texts of the language; `flat` of all words are drawn without regard to the one before."""
    rng = torch.Generator().manual_seed(seed)
    table = (1 - flat) * _table() + flat / STATES
    start = torch.full((STATES,), 1 / STATES)
    for _ in range(50):
        start = start @ table
    tokens = [torch.multinomial(start.expand(num, -1), 1, generator=rng)[:, 0]]
    while len(tokens) < LENGTH:
        tokens.append(torch.multinomial(table[tokens[-1]], 1, generator=rng)[:, 0])
    return torch.stack(tokens, 1) + 2  # after <eos> and <unk>


class _Chain(nn.Module):
    """The chain as a causal LM: its hidden state is the word, its output embedding the log table."""

    def __init__(self) -> None:
        super().__init__()
        entries = STATES + 3
        log_p = torch.full((entries, entries), -12.0)
        log_p[2:-1, 2:-1] = _table().log()
        self.output = nn.Linear(entries, entries, bias=False)
        self.output.weight.data = log_p.T.contiguous()
        self.config = SimpleNamespace(
            get_text_config=lambda: SimpleNamespace(vocab_size=entries, max_position_embeddings=64)
        )

    def get_output_embeddings(self) -> nn.Linear:
        return self.output

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        hidden = nn.functional.one_hot(input_ids, self.output.in_features).float()
        return SimpleNamespace(logits=self.output(hidden), hidden_states=(hidden,))


def evaluator() -> Evaluator:
    return Evaluator(model=_Chain().eval(), tokenizer=tokenizer(), name="chain")

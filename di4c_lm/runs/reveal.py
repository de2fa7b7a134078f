"""How texts appear: of each token its piece of the text, the step that revealed it, and the probability it was sampled with."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from jaxtyping import Float64, Int64
from torch import Tensor

if TYPE_CHECKING:
    from di4c_lm.domains.text.model import TextModel

_BROKEN = "\ufffd"  # what stands for a part of a letter
_LONGEST = 4  # tokens that one letter may be cut into


@final
@dataclass(frozen=True)
class Token:
    """A position of a text. A masked one has no piece; a letter that is cut into tokens is the piece of the first of them."""

    piece: str | None
    step: int = 0  # that revealed it; 0 for what was given
    p: float = 1.0  # with which it was sampled


class Revealing:
    """The tokens of B texts, step by step; an `on_scored` of samplers."""

    def __init__(self, model: "TextModel") -> None:
        self._tokenizer, self._mask_id = model.tokenizer, model.mask_id if model.masks else None
        self._pieces: dict[int, str] = {}
        self._x: list[list[int]] = []
        self.step = 0
        self.tokens: list[list[Token]] = []

    def __call__(self, x_BD: Int64[Tensor, "B D"], log_p_BD: Float64[Tensor, "B D"], step: int) -> None:
        """Take in the texts after `step`; step 0 is what was given."""
        self.step, before = step, self._x
        self._x = x_BD.tolist()
        if step == 0:
            self.tokens = [[Token(piece) for piece in self._cut(ids)] for ids in self._x]
            return
        rows = zip(self._x, log_p_BD.exp().tolist(), before, self.tokens, strict=True)
        self.tokens = [self._after(ids, p, were, tokens) for ids, p, were, tokens in rows]

    @property
    def masked(self) -> list[int]:
        """How many positions of each text are masked."""
        return [sum(token.piece is None for token in tokens) for tokens in self.tokens]

    def _after(self, ids: list[int], p: list[float], before: list[int], tokens: list[Token]) -> list[Token]:
        after: list[Token] = []
        for now, piece, probability, then, token in zip(ids, self._cut(ids), p, before, tokens, strict=True):
            if piece is None:
                after.append(Token(None))
            elif now == then:
                after.append(Token(piece, token.step, token.p))
            else:
                after.append(Token(piece, self.step, probability))
        return after

    def _cut(self, ids: list[int]) -> list[str | None]:
        pieces: list[str | None] = [None if one == self._mask_id else self._piece(one) for one in ids]
        for start, piece in enumerate(pieces):
            for end in range(start + 2, min(start + _LONGEST, len(ids)) + 1):
                if not piece or _BROKEN not in piece or None in pieces[start:end]:
                    break
                whole = str(self._tokenizer.decode(ids[start:end]))
                if _BROKEN not in whole:
                    pieces[start:end] = [whole, *[""] * (end - start - 1)]
                    break
        return pieces

    def _piece(self, one: int) -> str:
        """The text of a token behind another: some tokenizers drop the space that the first begins with."""
        if one not in self._pieces:
            decode: Any = self._tokenizer.decode
            self._pieces[one] = decode([one, one])[len(decode([one])) :]
        return self._pieces[one]

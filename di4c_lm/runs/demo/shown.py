"""What the page asks for, and what it is shown of a model: its samples as they appear, as plain values."""

import base64
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, final

from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import Texts, check, section, setting
from di4c_lm.domains.text.model import TextModel
from di4c_lm.measure.render.pictures import tiles
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.runs.reveal import Revealing, Token
from di4c_lm.runs.sampling import Sampling, labels_of

Event: TypeAlias = dict[str, Any]
Emit: TypeAlias = Callable[[Event], None]
_MOST_SAMPLES, _MOST_STEPS = 64, 1000


@section
class Request(Sampling):
    """What the page asks for."""

    models: Texts = setting((), "those of the page that sample; none: all")
    prompt: str = setting("", "how the texts begin")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.steps <= _MOST_STEPS, "steps", self.steps, f"at most {_MOST_STEPS} on the page")
        images = self.num_samples * max(1, len(self.labels))
        allowed = f"at most {_MOST_SAMPLES} on the page, all classes together"
        check(images <= _MOST_SAMPLES, "num_samples", self.num_samples, allowed)


def show(model: Any, request: Request, emit: Emit) -> None:
    """Sample, and emit the samples after each step; at the end the network calls a sample took (NFE) and the seconds of all.

    Raises `ValueError` for a request that does not fit the model.
    """
    clock = _Clock()
    if isinstance(model, TextModel):
        check(not request.labels, "labels", request.labels, "left out for text")
        nfe = _show_text(model, request, emit, clock)
    else:
        check(not request.prompt, "prompt", request.prompt, "left out for images")
        nfe = _show_images(model, request, emit, clock)
    with clock.stopped():
        emit({"nfe": nfe, "seconds": clock.seconds})


def _show_text(model: TextModel, request: Request, emit: Emit, clock: "_Clock") -> float:
    x_init = model.begin([request.prompt], request.num_samples, seed=request.seed)
    revealing = Revealing(model)

    def on_scored(x_BD: Int64[Tensor, "B D"], log_p_BD: Float64[Tensor, "B D"], step: int) -> None:
        with clock.stopped():
            before = revealing.tokens if step else [[None] * x_BD.shape[1]] * len(x_BD)
            revealing(x_BD, log_p_BD, step)
            changes = _changes(before, revealing.tokens)
            emit({"step": step, "seconds": clock.seconds, "masked": sum(revealing.masked), "changes": changes})

    how = {"seed": request.seed, "batch_size": len(x_init), "x_init": x_init, **request.how(model)}
    return model.sample_tokens(len(x_init), request.steps, on_scored=on_scored, **how)[1]


def _changes(before: Sequence[Sequence[Token | None]], after: Sequence[Sequence[Token]]) -> list[list[list[Any]]]:
    """Of each text the tokens that are not as before: position, piece, step and probability."""
    return [
        [[d, new.piece, new.step, new.p] for d, (old, new) in enumerate(zip(*pair, strict=True)) if new != old]
        for pair in zip(before, after, strict=True)
    ]


def _show_images(model: Any, request: Request, emit: Emit, clock: "_Clock") -> float:
    labels = labels_of(request, model)
    count, step = request.num_samples if labels is None else len(labels), 0

    def on_step(x_BD: Int64[Tensor, "B D"]) -> None:
        nonlocal step
        with clock.stopped():
            step += 1
            masked = int(model.process.unknown(x_BD).sum()) if isinstance(model.process, MaskedProcess) else None
            picture = base64.b64encode(tiles(model.state_images(x_BD), math.ceil(math.sqrt(count)))).decode()
            emit({"step": step, "seconds": clock.seconds, "masked": masked, "picture": picture})

    how = {"batch_size": count, **request.how(model)}
    return model.images(count, request.steps, request.seed, labels, on_step=on_step, **how)[1]


@final
class _Clock:
    """Seconds that sampling takes, without those that showing it takes."""

    def __init__(self) -> None:
        self.seconds, self._since = 0.0, time.perf_counter()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The time within is not counted."""
        self.seconds += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()

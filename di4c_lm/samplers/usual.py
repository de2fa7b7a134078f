"""The sampler of a model for which none is said."""

from typing import Any, final

from di4c_lm.core.settings import section
from di4c_lm.samplers.registry import SAMPLERS, make_sampler
from di4c_lm.samplers.trajectory import Sampler


@final
@section
class Usual:
    """The usual one of each model: confidence for codes of images, left_to_right for a sequential head on text, else ancestral."""


WITH_USUAL = {**SAMPLERS, "usual": Usual}


def resolved(sampler: Sampler | Usual | str, model: Any) -> Sampler:
    """The sampler that is said, as an object or by name, or the usual one of the model, of which it has the name (`usual_sampler`)."""
    said = model.usual_sampler if isinstance(sampler, Usual) or sampler == "usual" else sampler
    return make_sampler(said) if isinstance(said, str) else said

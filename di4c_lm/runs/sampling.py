"""How a command samples: the settings that are the same for a model of whatever domain."""

from typing import Any, Literal

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from di4c_lm.core.settings import Ints, at_least, check, choice, section, setting
from di4c_lm.samplers.trajectory import Decoding, Sampler
from di4c_lm.samplers.usual import WITH_USUAL, Usual, resolved


@section
class Sampling:
    """Samples of a model."""

    steps: int = setting(8, "network calls, or what the sampler makes of them")
    num_samples: int = setting(4, "of each prompt, or of each of the classes in labels")
    labels: Ints = setting((), "classes of the images; none: images of no class")
    sampler: Any = choice(WITH_USUAL, Usual(), "how the reverse process is walked")
    grid: tuple[float, ...] | str = setting(
        "uniform", "uniform, cosine, published, or times such as [1,0.5,0]; of text also optimised or fewest"
    )
    temperature: float = setting(1.0, "of the states, after λ is sampled")
    top_p: float = setting(1.0, "probability of the likeliest states that are kept")
    guidance: float = setting(0.0, "weight of classifier-free guidance, where labels are given")
    noise: Literal["exact", "legacy_fp32"] = setting("exact", "legacy_fp32: the published code's")
    end: Literal["sample", "argmax"] | None = setting(
        None, "what the last step takes; null: argmax for pixels, as published, else a sample"
    )
    hold_lambda: bool = setting(False, "one λ a sample in place of one a call")
    hybrid_last: int = setting(0, "steps at the end that the teacher takes")
    seed: int = setting(0, "of all samples")

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "num_samples")
        Decoding(**self.decoding())

    def decoding(self) -> dict[str, Any]:
        """The fields of `Decoding` that are said; a domain has its own default of `end`."""
        names = ("temperature", "top_p", "guidance", "noise", "hybrid_last")
        end = {} if self.end is None else {"end": self.end}
        return {**{name: getattr(self, name) for name in names}, **end, "hold_latents": self.hold_lambda}

    def sampler_for(self, model: Any) -> Sampler:
        """The sampler that is said, or the usual one of the model."""
        return resolved(self.sampler, model)

    def how(self, model: Any) -> dict[str, Any]:
        """How the model is sampled, as `sample_tokens` and `images` take it, beside the number of samples, steps and the seed."""
        return {"sampler": self.sampler_for(model), "grid": self.grid, **self.decoding()}


def labels_of(settings: Sampling, model: Any) -> Int64[ndarray, " N"] | None:
    """The class of each image, `num_samples` of each of `labels`; None for images of no class. Raises `ValueError` where there are none."""
    check(not settings.labels or model.num_classes, "labels", settings.labels, "left out: the model knows no classes")
    return np.asarray(settings.labels, np.int64).repeat(settings.num_samples) if settings.labels else None

"""Di4C: few-step mixture students of masked-diffusion language models.

Three functions are the whole public face: `load` a model and sample from it, `train` a student, `evaluate` a run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from di4c_lm.domains.load import load
    from di4c_lm.runs.evaluate import evaluate
    from di4c_lm.runs.train import train

__all__ = ["__version__", "evaluate", "load", "train"]
__version__ = "0.1.0"
_PLACES = {"load": "di4c_lm.domains.load", "train": "di4c_lm.runs.train", "evaluate": "di4c_lm.runs.evaluate"}


def __getattr__(name: str) -> Any:
    """The public functions, whose modules are imported when they are asked for first: the command's help needs none."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)

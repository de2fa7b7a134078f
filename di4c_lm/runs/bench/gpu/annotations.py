"""Shapes in annotations where jaxtyping is not installed: they say nothing then, and what is annotated runs the same."""

import sys
from types import ModuleType
from typing import Any

_NAMES = ("Bool", "Float", "Float64", "Int", "Int64", "Integer", "UInt", "UInt8")


class _Annotation:
    """`Float[Tensor, "B D"]` is Tensor."""

    def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
        return item[0]


def without_jaxtyping() -> None:
    """Let a stand-in serve from here on, where the package is absent."""
    try:
        import jaxtyping  # noqa: F401 (only whether it is there)
    except ModuleNotFoundError:
        sys.modules["jaxtyping"] = _stand_in()


def _stand_in() -> ModuleType:
    module = ModuleType("jaxtyping")
    for name in _NAMES:
        setattr(module, name, _Annotation)
    return module

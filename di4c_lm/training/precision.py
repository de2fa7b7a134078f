"""What must not be rounded when a network is cast to a narrower dtype."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def exact_buffers(module: nn.Module) -> Iterator[None]:
    """Casts of `module` in the block leave its buffers as they were: the frequencies of rotary positions, say, whose rounding to bfloat16
    would turn late positions by radians."""
    exact = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    yield
    for name, buffer in module.named_buffers():
        if buffer.dtype != exact[name].dtype:
            buffer.data = exact[name].to(buffer.device)

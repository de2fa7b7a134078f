"""A student that begins as its teacher, whatever the network."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from di4c_lm.checkpoints.weights import check_tensors
from di4c_lm.mixtures.settings import LatentConfig

Network = TypeVar("Network", bound=nn.Module)


def inherit(
    teacher: Network,
    make: Callable[[], Network],
    latent: LatentConfig | None,
    generator: torch.Generator,
    is_latent: Callable[[str], bool],
) -> Network:
    """The network of `make()`, with λ by `latent`, and all of `teacher`'s weights in it; what is new is drawn from `generator`.

    The global generator is left alone. A teacher that is a mixture itself (a second round) hands on its λ path too. On the teacher's
    device, in its dtype, in training mode, every parameter trainable. Raises `ValueError` where shapes differ, all of them listed, or
    where the teacher's λ is of another kind than `latent`.
    """
    if teacher.latent is not None and teacher.latent != latent:
        raise ValueError(f"lambda={latent} differs from that of the teacher, which is a mixture with {teacher.latent}")
    given = {name: tensor.detach() for name, tensor in teacher.state_dict().items()}
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = make()
    own = student.state_dict()
    fresh = {} if teacher.latent is not None else {name: tensor for name, tensor in own.items() if is_latent(name)}
    check_tensors({**given, **fresh}, own, "the student of this teacher")
    reference = next(teacher.parameters())
    student.to(device=reference.device, dtype=reference.dtype)
    student.load_state_dict({**student.state_dict(), **given}, strict=True)
    return student.train()

"""What all domains make of the settings of λ: the λ path of a student, and how it begins."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from di4c_lm.mixtures.class_counts import token_classes
from di4c_lm.mixtures.class_head import ClassHead
from di4c_lm.mixtures.settings import LatentConfig


def latent_of(latent: LatentConfig, objective: Any) -> LatentConfig:
    """The λ path of the student; a codebook without a size has a vector for each of the L draws."""
    return dataclasses.replace(latent, codebook_size=latent.codebook_size or objective.num_lambdas)


def begin(
    student: nn.Module,
    teacher: nn.Module,
    tokens: Callable[[], Int64[Tensor, "N D"]],
    generator: torch.Generator,
    is_latent: Callable[[str], bool],
) -> None:
    """Token classes that no teacher handed on begin as those of `tokens()`, sequences whose neighbours are tied; and `freeze_trunk`."""
    latent = cast(LatentConfig | None, student.latent)
    if latent is not None and latent.path == "classes" and teacher.latent is None:
        head = cast(ClassHead, student.latent_head)
        num_states, num_classes = head.table.shape
        found = token_classes(tokens(), num_states, num_classes, generator)
        head.begin_with(found.class_S, found.log_ratio_LL)
    freeze_trunk(student, latent, is_latent)


def freeze_trunk(student: nn.Module, latent: LatentConfig | None, is_latent: Callable[[str], bool]) -> None:
    """Where `lambda.trunk=frozen`, leave only the λ path to train."""
    if latent is not None and latent.trunk == "frozen":
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(is_latent(name))

"""What every objective is: the module that the engine wraps, so that it sees every use of the student's parameters."""

from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn

from di4c_lm.core.settings import at_least, section, setting, unit
from di4c_lm.processes.denoiser import Denoiser
from di4c_lm.processes.process import Process


@section
class ObjectiveSettings:
    """What all objectives are set by, and what a run must know of one.

    Each has `build(student, process, seed=, teacher=None)`, the module that the engine wraps.
    """

    label_drop: float = setting(
        0.0, "share of examples whose class is hidden in training, where there are classes; guidance needs some"
    )
    chunk_rows: int = setting(
        0, "rows of logits (positions times L) held at once; 0: 2^23 logits on a CPU, 2^26 on a GPU"
    )

    source: Literal["corpus", "teacher"] = setting(
        "corpus",
        "where x_0 comes from: data, or with teacher the teacher's own samples, the shards of `di4c prepare teacher-samples`",
    )

    needs_teacher: ClassVar[bool] = True  # whether a run begins from a teacher
    takes_mixture: ClassVar[bool] = False  # whether the student is a mixture, and the teacher may be one
    needs_marginals: ClassVar[bool] = False  # whether those of the mixture, λ averaged out, are part of it
    antithetic: ClassVar[bool] = False  # whether batches are to be stratified, one t in each of G equal parts
    num_distributions: ClassVar[int] = 0  # over the states, one a position each, that a step holds beside the student's
    label: ClassVar[str]  # what a progress bar shows

    def __post_init__(self) -> None:
        at_least(self, 0, "chunk_rows")
        unit(self, "label_drop")


@section
class MixtureObjectiveSettings(ObjectiveSettings):
    """What the objectives of mixtures have in common."""

    num_lambdas: int = setting(16, "L, samples of λ for each x_t, where λ is not enumerated")
    init: Literal["teacher", "scratch"] = setting(
        "teacher",
        "begin as the teacher, or without one train the network with its mixture from random weights (scratch)",
    )

    takes_mixture: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "num_lambdas")

    @property
    def needs_teacher(self) -> bool:
        """Whether the student begins as a teacher."""
        return self.init == "teacher"


class Objective(nn.Module):
    """Turns a batch into a loss, a mean over its examples each with its own t, and into detached scalar metrics.

    Of what is random everything is keyed by (`seed`, sample id, epoch), so that neither the ranks nor the batch can change it. A teacher
    is held outside the module's parameters: it is neither optimised, saved nor partitioned.
    """

    student: Any  # a `Denoiser`; of an objective that takes one a `Mixture`
    adaptive: Any = None  # what an update changes besides the weights: `training.loop.Adaptive`

    def __init__(
        self, settings: Any, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        self.student = student
        self.process = process
        self.seed = seed
        self._teacher = (None if teacher is None else teacher.eval().requires_grad_(False),)
        if getattr(settings, "matmul_dtype", "same") == "bfloat16":
            setattr(student, "matmul_dtype", torch.bfloat16)  # noqa: B010 (its output head's; no attribute of every module)

    @property
    def teacher(self) -> Any:
        """The frozen network that is distilled, or None."""
        return self._teacher[0]

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """Parameters that are used outside the module that owns them: the output head's, inside the loss."""
        owned = {id(parameter) for parameter in self.student.parameters()}  # those of a frozen backbone are not
        used = cast(Denoiser, self.student).output_head().parameters
        return [(self, one) for one in used if isinstance(one, nn.Parameter) and id(one) in owned]

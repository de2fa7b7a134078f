"""What every objective is: the module that the engine wraps, so that it sees every use of the student's parameters."""

from typing import Any, cast

from torch import nn

from di4c_lm.processes.denoiser import Denoiser
from di4c_lm.processes.process import Process


class Objective(nn.Module):
    """Turns a batch into a loss, a mean over its examples each with its own t, and into detached scalar metrics.

    Of what is random everything is keyed by (`seed`, sample id, epoch), so that neither the ranks nor the batch can change it. A teacher
    is held outside the module's parameters: it is neither optimised, saved nor partitioned.
    """

    student: Any  # a `Denoiser`; of an objective that takes one a `Mixture`

    def __init__(
        self, settings: Any, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        self.student = student
        self.process = process
        self.seed = seed
        self._teacher = (None if teacher is None else teacher.eval().requires_grad_(False),)

    @property
    def teacher(self) -> Any:
        """The frozen network that is distilled, or None."""
        return self._teacher[0]

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        """Parameters that are used outside the module that owns them: the output head's, inside the loss."""
        owned = {id(parameter) for parameter in self.student.parameters()}  # those of a frozen backbone are not
        used = cast(Denoiser, self.student).output_head().parameters
        return [(self, one) for one in used if isinstance(one, nn.Parameter) and id(one) in owned]

"""Parameters that an objective uses outside the module that owns them."""

from typing import cast

from torch import nn

from di4c_lm.processes.denoiser import Denoiser


def output_head_parameters(objective: nn.Module, student: nn.Module) -> list[tuple[nn.Module, nn.Parameter]]:
    """The parameters of `student`'s output_head, used by `objective`, which takes it out of a `Prediction`."""
    parameters = cast(Denoiser, student).output_head().parameters
    return [(objective, parameter) for parameter in parameters if isinstance(parameter, nn.Parameter)]

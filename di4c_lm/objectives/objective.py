"""What every objective is: the module that the engine wraps, so that it sees every use of the student's parameters."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from di4c_lm.processes.denoiser import Denoiser
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import Rng, uniform


class Objective(nn.Module):
    """Turns a batch into a loss, a mean over its examples each with its own t, and into detached scalar metrics.

    Of what is random everything is keyed by (`seed`, sample id, epoch), so that neither the ranks nor the batch can change it. A teacher
    is held outside the module's parameters: it is neither optimised, saved nor partitioned.
    """

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
        parameters = cast(Denoiser, self.student).output_head().parameters
        return [(self, parameter) for parameter in parameters if isinstance(parameter, nn.Parameter)]


def sample_latents(network: Any, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Any:
    """L samples of λ for each of B sequences, or None for a network without λ."""
    return network.sample_latents(num_batch, num_lambdas, lambda shape: uniform(rng, shape, device))


def training_latents(network: Any, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Any:
    """λ as a loss reads it: all the codes of a string of codes, else samples."""
    string = network.latent is not None and network.latent.is_string
    return sample_latents(network, num_batch, 0 if string else num_lambdas, rng, device)


def one_a_row(lam: Tensor) -> Tensor:
    """The same B L samples as those of B L sequences, one each."""
    return lam.flatten(0, 1)[:, None]

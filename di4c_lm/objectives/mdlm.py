"""MDLM's objective (Sahoo et al. 2024): a masked-diffusion model from data alone."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.core.settings import at_least, check, section, setting, unit
from di4c_lm.data.batches import Batch
from di4c_lm.losses.mdlm import log_linear_weight
from di4c_lm.objectives.denoising import Denoising, DenoisingObjective
from di4c_lm.processes.masked import LogLinear, MaskedProcess
from di4c_lm.processes.process import Process


@section
class Mdlm(Denoising):
    """MDLM's continuous-time bound, from data alone: trains a masked-diffusion model, anew or from the teacher's weights."""

    init: Literal["scratch", "teacher"] = setting(
        "scratch", "begin from random weights (scratch) or from the teacher's"
    )
    bound_draws: int = setting(
        8, "times t sampled for each validation sequence in the closing report's perplexity bound"
    )

    weight_power: float = setting(
        1.0,
        "power of 1/t that weighs a masked token in the loss; 1: the bound, 0: all tokens alike; the bound is reported",
    )

    label: ClassVar[str] = "mdlm"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "bound_draws")
        unit(self, "weight_power")

    @property
    def needs_teacher(self) -> bool:
        """Whether the student begins with a teacher's weights."""
        return self.init == "teacher"

    def build(
        self, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> "MdlmObjective":
        """The module that the engine wraps; a teacher gives its weights alone. Raises `ValueError` for another schedule than log-linear."""
        check(
            isinstance(process, MaskedProcess) and isinstance(process.schedule, LogLinear),
            "objective",
            "mdlm",
            "denoising where noise is not masking at a log-linear rate",
        )
        return MdlmObjective(self, student, process, seed=seed)


class MdlmObjective(DenoisingObjective):
    """Training a masked-diffusion model from data by its continuous-time bound, one t an example, times as in `DenoisingObjective`."""

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch of the weighted loss, in nats a sequence, and the bound a token.

        At `weight_power` 1 and times that are not bell-shaped the loss is the bound itself.
        """
        (nats_B, t_B, density_B), power = self.cross_entropy(batch), self.settings.weight_power
        weighted_B = log_linear_weight(t_B).double() * nats_B
        loss_B = weighted_B * (2 - power) * t_B.double() ** (1 - power)
        return self.mean(loss_B, t_B, density_B), {
            "bound_per_token": (weighted_B.detach() / density_B).mean() / batch.x.shape[1]
        }

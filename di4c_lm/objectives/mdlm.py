"""MDLM's objective (Sahoo et al. 2024): a masked-diffusion model from data alone."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.core.settings import at_least, check, section, setting
from di4c_lm.data.batches import Batch
from di4c_lm.losses.mdlm import log_linear_weight
from di4c_lm.objectives.denoising import Denoising, DenoisingObjective
from di4c_lm.processes.masked import LogLinear
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

    label: ClassVar[str] = "mdlm"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "bound_draws")

    @property
    def needs_teacher(self) -> bool:
        """Whether the student begins with a teacher's weights."""
        return self.init == "teacher"

    def build(
        self, student: nn.Module, process: Process, *, seed: int, teacher: nn.Module | None = None
    ) -> "MdlmObjective":
        """The module that the engine wraps; a teacher gives its weights alone. Raises `ValueError` for another schedule than log-linear."""
        schedule = getattr(process, "schedule", None)
        check(
            isinstance(schedule, LogLinear),
            "objective",
            "mdlm",
            "denoising where noise is not masking at a log-linear rate",
        )
        return MdlmObjective(self, student, process, seed=seed)


class MdlmObjective(DenoisingObjective):
    """Training a masked-diffusion model from data by its continuous-time bound, one t an example, times as in `DenoisingObjective`."""

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean over the batch of the bound in nats a sequence, and the same a token."""
        loss = self.cross_entropy(batch, log_linear_weight).mean()
        return loss, {"bound_per_token": loss.detach() / batch.x.shape[1]}

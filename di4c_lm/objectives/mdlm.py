"""MDLM's objective (Sahoo et al. 2024): a masked-diffusion model from data alone."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.core.settings import at_least, check, section, setting, unit
from di4c_lm.data.batches import Batch
from di4c_lm.losses.mdlm import log_linear_weight
from di4c_lm.objectives.denoising import DenoisingObjective
from di4c_lm.processes.masked import LogLinear
from di4c_lm.processes.process import Process


@section
class Mdlm:
    """MDLM's continuous-time bound, from data alone: trains a model anew, or further from the teacher's weights."""

    init: Literal["scratch", "teacher"] = setting("scratch", "random weights, or the teacher's")
    times: Literal["antithetic", "iid"] = setting(
        "antithetic", "antithetic: one t in each of G equal parts, G the global batch"
    )
    bound_draws: int = setting(8, "times a validation sequence, in the closing report's perplexity bound")
    label_drop: float = setting(0.0, "share of the examples whose class is hidden, where a batch has classes")
    chunk_rows: int = setting(0, "rows of logits read at once; 0: 2^23 logits on a CPU, 2^26 on a GPU")

    takes_mixture: ClassVar[bool] = False
    num_distributions: ClassVar[int] = 0
    label: ClassVar[str] = "mdlm"

    def __post_init__(self) -> None:
        at_least(self, 1, "bound_draws")
        at_least(self, 0, "chunk_rows")
        unit(self, "label_drop")

    @property
    def needs_teacher(self) -> bool:
        """Whether the student begins with a teacher's weights."""
        return self.init == "teacher"

    @property
    def antithetic(self) -> bool:
        """Whether batches are to be stratified."""
        return self.times == "antithetic"

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

"""The objectives by name.

An objective is one file here: its settings, a section that also says what a run must know of it, and the module that it builds.
"""

from typing import Any

from di4c_lm.objectives.denoising import Denoising
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.objectives.sdtt import Sdtt

OBJECTIVES: dict[str, Any] = {
    "likelihood": Likelihood,
    "di4c": Di4C,
    "sdtt": Sdtt,
    "mdlm": Mdlm,
    "denoising": Denoising,
}

# Former keys and what each is now, the more specific ones first: the key that took its place, or that it is gone, and why.
OLD_KEYS: dict[str, str] = {
    "objective.hop.law": "objective.teacher_step.distribution",
    "objective.hop.teacher_steps": "objective.teacher_step.steps",
    "objective.hop": "objective.teacher_step",
    "objective.times.law": "objective.times.distribution",
    "objective.times.mass_at_one": "gone (t = 1 is of objective.times.grid_steps=[1])",
    "objective.control_variate_data": "objective.control_variate",
    "objective.control_variate_consistency": "objective.control_variate",
    "objective.data_weight": "objective.alpha_scale",
    "objective.delta_weight": "gone (objective.distil_weight=<1 / objective.delta> does the same)",
    "objective.lead_steps": "gone (objective=likelihood learns from the likelihood alone)",
}

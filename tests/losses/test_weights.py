import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from di4c_lm.losses.di4c import Terms
from di4c_lm.losses.weights import Alpha, alpha
from di4c_lm.objectives.di4c import Di4CObjective
from di4c_lm.objectives.settings import Di4CConfig
from di4c_lm.processes.masked import MaskedProcess

KINDS: dict[str, Alpha] = {"sigmoid": "sigmoid", "linear": "linear", "const": "constant"}


@pytest.mark.parametrize(
    "kind, expected",
    [("sigmoid", [4.5397868702e-05, 0.5, 0.9999546021]), ("linear", [0, 0.5, 1]), ("constant", [1, 1, 1])],
)
def test_alpha(kind: Alpha, expected: list[float]) -> None:
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert alpha(kind, 0.3, t).tolist() == pytest.approx([0.3 * value for value in expected])


@pytest.mark.parametrize("case", ["lm_loss", "maskgit_loss"])
def test_the_objective_weighs_the_terms_as_published(shared: Path, case: str) -> None:
    """From the reference's components of each run to its total; what the published switch takes out is set to nonsense."""
    file = np.load(shared / "golden" / f"{case}.npz")
    meta = json.loads(str(file["meta"]))
    delta = meta["distil_delta"] if case == "lm_loss" else meta["r_delta"]
    for run, settings in meta["cases"].items():
        cv = settings["use_cv"]
        t_B = torch.tensor(
            [settings["t"]] if case == "lm_loss" else [1 - r for r in settings["r"]], dtype=torch.float64
        )
        low_B = t_B < delta if case == "lm_loss" else torch.from_numpy(file[f"{run}_r_weight"]) > 0
        part = {
            name: torch.from_numpy(file[f"{run}_{name}"]).double().expand_as(t_B)
            for name in ("data_loss_cor", "data_loss_indep", "consis_loss_cor", "consis_loss_indep", "distil_loss")
        }
        gate = 1 / delta if case == "maskgit_loss" else 1.0
        nonsense = 7.0
        terms = Terms(
            data_joint=part["data_loss_cor"] - nonsense * cv,
            data_product=torch.full_like(t_B, nonsense),
            data_marginal=part["data_loss_indep"] + nonsense * (not cv),
            consistency_joint=part["consis_loss_cor"] - nonsense * cv,
            consistency_product=torch.full_like(t_B, nonsense),
            consistency_marginal=part["consis_loss_indep"] + nonsense * (not cv),
            distil=torch.where(low_B, part["distil_loss"] / gate, nonsense),
        )
        config = Di4CConfig(
            alpha=KINDS[settings["alpha_t"]],
            alpha_scale=meta["alpha_const"],
            marginal_weight=float(cv),
            control_variate_data=cv,
            control_variate_consistency=cv,
            delta=delta,
            delta_weight=case == "maskgit_loss",
        )
        objective = Di4CObjective(nn.Linear(1, 1), nn.Linear(1, 1), MaskedProcess(1), config, seed=0)
        loss, _ = objective._weigh(terms, t_B, low_B)
        assert float(loss) == pytest.approx(float(file[f"{run}_loss"]), rel=1e-5), run

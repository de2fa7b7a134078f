"""The golden files of the published code, and files of their format at other sizes, from the formulas of the reference in float64."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from di4c_lm.checkpoints import tauldr
from di4c_lm.checkpoints.weights import Hints
from tests.parity.golden import Golden
from tests.parity.kinds import Verdict, check, check_folder, kind_of

GOLDEN = (
    "lm_dit",
    "lm_dit_di4c",
    "lm_loss",
    "lm_sampling",
    "maskgit_denoise",
    "maskgit_loss",
    "maskgit_net",
    "maskgit_net_student",
    "maskgit_schedules",
    "tauldr_loss",
    "tauldr_net",
    "tauldr_net_lam",
    "tauldr_transition_S16",
    "tauldr_transition_S256",
    "vqgan",
)


def write_case(path: Path, meta: dict[str, Any], **arrays: Any) -> Golden:
    """A file of the golden format."""
    contents: dict[str, Any] = {"meta": json.dumps(meta)} | arrays
    np.savez(path, **{name: np.asarray(value) for name, value in contents.items()})  # pyright: ignore[reportArgumentType]
    return Golden(path)


def wrong_arrays(verdict: Verdict) -> list[str]:
    return [row.array for row in verdict.rows if not row.ok]


@pytest.mark.parametrize("case", GOLDEN)
def test_a_golden_case_is_reproduced(shared: Path, case: str) -> None:
    verdict = check(Golden(shared / "golden" / f"{case}.npz"))
    assert (verdict.result, wrong_arrays(verdict), verdict.remark) == ("ok", [], "")


def test_every_golden_file_is_of_a_kind_that_its_name_and_its_arrays_agree_on(shared: Path, tmp_path: Path) -> None:
    paths = sorted((shared / "golden").glob("*.npz"))
    assert {path.stem for path in paths} >= set(GOLDEN)
    for path in paths:
        by_name = kind_of(Golden(path))
        assert by_name is not None
        assert by_name.mark in Golden(path).arrays
        shutil.copyfile(path, tmp_path / "renamed.npz")
        assert kind_of(Golden(tmp_path / "renamed.npz")) is by_name


def test_a_file_of_no_kind_is_not_computed(tmp_path: Path) -> None:
    assert check(write_case(tmp_path / "else.npz", {}, x=np.zeros(2))).result == "not computed"


def test_cases_are_found_below_the_folder(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "lm_loss_small").mkdir()
    shutil.copyfile(shared / "golden" / "lm_loss.npz", tmp_path / "lm_loss_small" / "arrays.npz")
    assert [(verdict.case, verdict.result) for verdict in check_folder(tmp_path)] == [("lm_loss_small/arrays", "ok")]


@pytest.mark.parametrize("missing", ["c00_loss", "logits_teacher"])
def test_a_missing_array_is_no_pass(shared: Path, tmp_path: Path, missing: str) -> None:
    arrays = dict(np.load(shared / "golden" / "maskgit_loss.npz"))
    del arrays[missing]
    np.savez(tmp_path / "maskgit_loss.npz", **arrays)
    verdict = check(Golden(tmp_path / "maskgit_loss.npz"))
    assert verdict.result == "FAILED"
    assert missing in [row.array for row in verdict.rows if not row.ok] or missing in verdict.remark


@pytest.mark.parametrize("case", ["lm_dit_di4c", "maskgit_net_student", "tauldr_net_lam", "tauldr_transition_S16"])
def test_sizes_are_those_of_the_arrays_and_weights(shared: Path, tmp_path: Path, case: str) -> None:
    golden = Golden(shared / "golden" / f"{case}.npz")
    for beside in (shared / "golden").glob(f"{case}.*"):
        shutil.copyfile(beside, tmp_path / beside.name)
    sizes = {name: 99 for name, value in golden.meta.items() if type(value) is int and name != "heads"}
    kept = {name: golden.meta[name] for name in ("mask_index",) if name in golden.meta}
    verdict = check(write_case(tmp_path / f"{case}.npz", golden.meta | sizes | kept, **golden.arrays))
    assert (verdict.result, wrong_arrays(verdict), verdict.remark) == ("ok", [], "")


# -- transitions


def plain_rate(num_states: int, rate_sigma: float, q_sigma: float) -> np.ndarray:
    """R entry by entry: jumps towards the middle as told, those away from it by detailed balance."""
    pi = [math.exp(-((k + 1 - num_states / 2) ** 2) / (2 * q_sigma**2)) for k in range(num_states)]
    rate = np.zeros((num_states, num_states))
    half = num_states / 2
    for i in range(num_states):
        for j in range(num_states):
            if (i < half and i < j < num_states - i) or (i > half and num_states - 1 - i < j < i):
                rate[i, j] = math.exp(-(((abs(i - j) - 1) / rate_sigma) ** 2))
                rate[j, i] = rate[i, j] * pi[i] / pi[j]
    return rate - np.diag(rate.sum(1))


def write_transition(path: Path, num_states: int, *, base: float = 3.0, **changed: Any) -> Golden:
    meta = {"rate_sigma": 4.0, "Q_sigma": 90.0, "time_exponential": 50.0, "time_base": base}
    ts, ss, rows = np.array([0.02, 0.4, 1.0]), np.array([0.01, 0.3, 0.9]), np.array([0, 3, num_states - 1])
    rate = plain_rate(num_states, meta["rate_sigma"], meta["Q_sigma"])
    beta = base * (50.0**ts - 1)
    rates = base * math.log(50.0) * 50.0**ts
    whole = np.stack([expm(b * rate) for b in beta])
    step = np.stack([expm((b - base * (50.0**s - 1)) * rate) for b, s in zip(beta, ss, strict=True)])
    levels = np.arange(1, num_states + 1)
    initial = np.exp(-((levels - num_states // 2) ** 2) / (2 * meta["Q_sigma"] ** 2))
    arrays: dict[str, Any] = {
        "ts": ts,
        "ss": ss,
        "rows": rows,
        "integral_rate_scalar": beta,
        "rate_scalar": rates,
        "base_rate": rate[rows],
        "rate": (rates[:, None, None] * rate)[:, rows],
        "base_rate_sum": np.abs(rate).sum(),
        "rate_abs_sum": rates * np.abs(rate).sum(),
        "eigvals_sorted": np.sort(np.linalg.eigvals(rate).real),
        "transition_row_sums": whole.sum(2),
        "transition_diag": np.stack([np.diag(q) for q in whole]),
        "initial_probs": initial / initial.sum(),
    }
    for name, q in (("transition", whole), ("transition_ts", step)):
        arrays |= {name: q[:, rows], f"expm64_{name}": q[:, rows], f"{name}_sq_sum": (q**2).sum((1, 2))}
    return write_case(path, meta, **(arrays | changed))


@pytest.mark.parametrize("num_states", [4, 20])
def test_transitions_of_any_number_of_states(tmp_path: Path, num_states: int) -> None:
    verdict = check(write_transition(tmp_path / f"tauldr_transition_S{num_states}.npz", num_states))
    assert (verdict.result, wrong_arrays(verdict), verdict.remark) == ("ok", [], "")
    assert len(verdict.rows) == 16


def test_a_wrong_transition_is_seen(tmp_path: Path) -> None:
    verdict = check(write_transition(tmp_path / "tauldr_transition_S20.npz", 20, rate_scalar=np.ones(3)))
    assert (verdict.result, wrong_arrays(verdict)) == ("FAILED", ["rate_scalar"])


# -- the U-Net's tails


def published_logits(net_out: Tensor, num_states: int, *, fix_logistic: bool) -> Tensor:
    """(B, D, S) from (B, 2C, rows, columns), as the published code writes it."""
    mean, log_scale = (part.flatten(1)[..., None] for part in net_out.double().chunk(2, 1))
    width = 2 / num_states
    centre = torch.linspace(-1 + width / 2, 1 - width / 2, num_states, dtype=torch.float64)
    left, right = ((centre + side * width / 2 - mean) * torch.exp(-(log_scale - 2)) for side in (-1, 1))

    def log_minus_exp(a: Tensor, b: Tensor) -> Tensor:
        return a + torch.log1p(-torch.exp(b - a) + 1e-6)

    log_sigmoid = torch.nn.functional.logsigmoid
    logits = log_minus_exp(log_sigmoid(right), log_sigmoid(left))
    if not fix_logistic:
        return logits
    return torch.minimum(logits, log_minus_exp(-left + log_sigmoid(left), -right + log_sigmoid(right)))


def write_unet(folder: Path, golden: Path, *, num_states: int, fix_logistic: bool, claimed: bool) -> Golden:
    """The golden U-Net's weights on pixels of other levels, its logits by `fix_logistic`; the file claims `claimed`."""
    for suffix in (".safetensors", ".ckpt.pt"):
        shutil.copyfile(golden.with_suffix(suffix), folder / f"tauldr_net_S{num_states}{suffix}")
    old = Golden(golden)
    side = old.arrays["net_out_ema"].shape[-1]
    x = torch.randint(num_states, (2, 3 * side**2), generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.2, 0.9])
    raw = {name: tensor for name, tensor in old.weights().items() if name.startswith("net.")}
    size: Any = {"shape": (side, side, 3), "num_states": num_states}
    found = {
        "raw": tauldr.of_state(raw, golden, Hints(weights="raw", **size)),
        "ema": tauldr.read(golden.with_suffix(".ckpt.pt"), Hints(**size)),
    }
    arrays: dict[str, Any] = {"x": x, "times": times}
    for which, weights in found.items():
        with torch.no_grad():
            features = weights.build(golden)(x, times).features[:, 0]
        net_out = features.permute(0, 2, 1).reshape(len(x), -1, side, side)
        net_out[:, 3:] -= 3  # narrow: nearly every level is in a tail
        arrays[f"net_out_{which}"] = net_out
        arrays[f"logits_{which}"] = published_logits(net_out, num_states, fix_logistic=fix_logistic)
    arrays["logits_ema_np64"] = arrays["logits_ema"]
    arrays["logits_ema_other_fix_logistic"] = published_logits(
        arrays["net_out_ema"], num_states, fix_logistic=not fix_logistic
    )
    return write_case(folder / f"tauldr_net_S{num_states}.npz", {"fix_logistic": claimed}, **arrays)


@pytest.mark.parametrize("fix_logistic", [False, True])
def test_the_tails_are_those_that_the_file_names(shared: Path, tmp_path: Path, *, fix_logistic: bool) -> None:
    golden = shared / "golden" / "tauldr_net.npz"
    right = check(write_unet(tmp_path, golden, num_states=20, fix_logistic=fix_logistic, claimed=fix_logistic))
    logits = {row.array for row in right.rows if row.array.startswith("logits_") and row.ok}
    assert logits == {"logits_raw", "logits_ema", "logits_ema_np64", "logits_ema_other_fix_logistic"}
    wrong = check(write_unet(tmp_path, golden, num_states=20, fix_logistic=fix_logistic, claimed=not fix_logistic))
    assert set(wrong_arrays(wrong)) >= logits


# -- a loss


def plain_maskgit(
    student_BLDS: Tensor, teacher_BDS: Tensor, target_BLDS: Tensor, x_0: Tensor, x_BID: Tensor, **o: Any
) -> dict[str, Tensor]:
    """The reference's formulas for ImageNet, written out; settings r, r_delta, weight, use_cv."""
    log_p = student_BLDS.log_softmax(-1)
    log_L = math.log(log_p.shape[1])
    log_mean = log_p.logsumexp(1) - log_L

    def cor(x: Tensor) -> Tensor:
        joint = log_p.gather(3, x[:, None, :, None].expand(-1, log_p.shape[1], -1, 1)).squeeze(3).sum(2)
        product = log_mean.gather(2, x[..., None]).squeeze(2).sum(1)
        return log_L - joint.logsumexp(1) + o["use_cv"] * product

    def kl(p: Tensor, log_q: Tensor) -> Tensor:
        return (p * (p.log() - log_q)).sum((-1, -2))

    high = (o["r"] >= 1 - o["r_delta"]).double()
    teacher = teacher_BDS.softmax(-1)
    found = {
        "r": o["r"],
        "r_weight": high,
        "time_coeff": o["weight"],
        "data_loss_cor": cor(x_0),
        "data_loss_indep": o["use_cv"] * kl(teacher, log_mean),
        "consis_loss_cor": torch.stack([cor(x) for x in x_BID.unbind(1)]).mean(0),
        "consis_loss_indep": o["use_cv"] * kl(target_BLDS.softmax(-1).mean(1), log_mean),
        "distil_loss": high / o["r_delta"] * kl(teacher[:, None], log_p).mean(1),
    }
    found["data_loss"] = o["weight"] * found["data_loss_cor"] + found["data_loss_indep"]
    found["consis_loss"] = (1 - high) * (found["consis_loss_cor"] + found["consis_loss_indep"])
    found["loss"] = (found["data_loss"] + found["consis_loss"] + found["distil_loss"]).mean()
    return found


def test_a_loss_of_another_size_and_seed(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    num_batch, num_lambdas, side, num_states, r_delta = 2, 5, 2, 6, 0.2
    shape = (num_batch * num_lambdas, side * side, num_states)
    student, target = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    teacher = torch.randn(num_batch, *shape[1:], generator=rng, dtype=torch.float64)
    code = torch.randint(num_states, (num_batch, side, side), generator=rng)
    samples = torch.randint(num_states, (num_batch, num_lambdas, side * side), generator=rng)
    runs = {
        "c00": {"r": [0.3, 0.9], "alpha_t": "linear", "use_cv": True},
        "c01": {"r": [0.85, 0.1], "alpha_t": "const", "use_cv": False},
    }
    arrays = {"logits_teacher": teacher, "logits_student": student, "logits_student_teacher": target}
    arrays |= {"code": code, "x0_sampled": samples}
    for name, settings in runs.items():
        r = torch.tensor(settings["r"], dtype=torch.float64)
        leaf = student.clone().requires_grad_()
        rows = (num_batch, num_lambdas)
        found = plain_maskgit(
            leaf.unflatten(0, rows),
            teacher,
            target.unflatten(0, rows),
            code.flatten(1),
            samples,
            r=r,
            r_delta=r_delta,
            weight=0.3 * (1 - r if settings["alpha_t"] == "linear" else torch.ones_like(r)),
            use_cv=settings["use_cv"],
        )
        (found["grad_logits_student"],) = torch.autograd.grad(found["loss"], leaf)
        arrays |= {f"{name}_{key}": value.detach() for key, value in found.items()}
    meta = {"r_delta": r_delta, "alpha_const": 0.3, "cases": runs}
    values = {name: value.float() if value.is_floating_point() else value for name, value in arrays.items()}
    verdict = check(write_case(tmp_path / "maskgit_loss_L5.npz", meta, **values))
    assert (verdict.result, wrong_arrays(verdict), verdict.remark) == ("ok", [], "")

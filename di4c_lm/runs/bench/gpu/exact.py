"""Exactness: losses, gradients, samples and attention on the device in float32 and bfloat16, held against a CPU's float64."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from di4c_lm.data.batches import Batch
from di4c_lm.mixtures.base import MixtureSettings, NoMixture
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.base import attend, use_flash
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.runs.bench.gpu.trial import Found, Row, attempt, sized
from di4c_lm.runs.bench.measure import randomise
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample_keyed

_BATCH, _STEPS = 4, 8
_DTYPES = (torch.float32, torch.bfloat16)
_SLACK = {torch.float32: 1e-5, torch.bfloat16: 0.05}  # of the device's errors beside four times the CPU's
_CHAIN = ClassChainSettings(codebook_size=16, freeze_backbone=False)
_SEQUENTIAL = SequentialSettings(freeze_backbone=False)
_LOSSES: dict[str, tuple[MixtureSettings, Any]] = {
    "mdlm": (NoMixture(), Mdlm()),
    "di4c": (TokenSettings(), Di4C(num_lambdas=4)),
    "class_chain": (_CHAIN, Likelihood(num_lambdas=4)),
    "sequential": (_SEQUENTIAL, Likelihood(num_lambdas=4)),
}
_FEWER = 0.3  # equal tokens: one that rounding moves is seen by all that follow in its sequence
_SAMPLES: dict[str, tuple[MixtureSettings, str]] = {
    "ancestral": (NoMixture(), "ancestral"),
    "confidence": (NoMixture(), "confidence"),
    "first_hitting": (NoMixture(), "first_hitting"),
    "class_chain": (_CHAIN, "ancestral"),
    "sequential": (_SEQUENTIAL, "ancestral"),
}
_KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class _Sizes:
    positions: int
    states: int
    width: int


def measure(device: torch.device, *, scale: float) -> Found:
    """A column by place and type: relative errors of losses and of gradients (by their norm), shares of equal tokens, errors of attention.

    Noise is keyed, so that all see the same x_t. What Di4C samples inside its loss may differ where rounding moves a token: its errors in
    bfloat16 hold that too. `within` says whether each of the device's errors is at most four times the CPU's in the same type, and a slack,
    and whether nearly as many tokens are equal.
    """
    sizes = _Sizes(sized(256, scale, 16), sized(4000, scale, 100), sized(256, scale, 32, 16))
    cpu = torch.device("cpu")
    reference = _everything(sizes, cpu, torch.float64)
    errors: dict[tuple[str, torch.dtype], Row] = {}
    for place, where in (("cpu", cpu), ("device", device)):
        for dtype in _DTYPES:
            found = _everything(sizes, where, dtype)
            row = {name: _error(name, value, reference[name]) for name, value in found.items()}
            errors[place, dtype] = row
            name = f"{place} {str(dtype).removeprefix('torch.')}"
            yield name, {**row, **_attention_errors(sizes, where, dtype)}
    yield (
        "within",
        {
            str(dtype).removeprefix("torch."): _within(errors["device", dtype], errors["cpu", dtype], _SLACK[dtype])
            for dtype in _DTYPES
        },
    )


def _within(own: Row, of_cpu: Row, slack: float) -> bool:
    return all(
        own[name] >= of_cpu[name] - _FEWER if name.endswith("equal") else own[name] <= 4 * of_cpu[name] + slack
        for name in own
    )


def _error(name: str, value: Tensor, exact: Tensor) -> float:
    if name.endswith("equal"):
        return float((value == exact).double().mean())
    return float((value - exact).norm() / exact.norm())


def _everything(sizes: _Sizes, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Losses, gradients and samples by name, in float64 or whole numbers on the CPU."""
    found: dict[str, Tensor] = {}
    for name, (mixture, objective) in _LOSSES.items():
        found |= {f"{name} {what}": one for what, one in _loss(sizes, mixture, objective, device, dtype).items()}
    process = MaskedProcess(sizes.states - 1)
    for name, (mixture, sampler) in _SAMPLES.items():
        network: Any = _network(sizes, mixture).to(device, dtype).eval()
        shape, grid = (_BATCH, sizes.positions), uniform_grid(_STEPS)
        samples = sample_keyed(network, process, shape, grid, seed=2, sampler=sampler, device=device)
        found[f"{name} equal"] = samples.x
    return found


def _network(sizes: _Sizes, mixture: MixtureSettings) -> Any:
    """The same weights whenever it is called."""
    torch.manual_seed(0)
    model = DitConfig(hidden_size=sizes.width, num_blocks=2, num_heads=2, attention="sdpa")
    return randomise(mixture.fresh(DIT, model, {"num_states": sizes.states}))


def _loss(
    sizes: _Sizes, mixture: MixtureSettings, objective: Any, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    student, teacher = (_network(sizes, one).to(device, dtype) for one in (mixture, NoMixture()))
    number_B = torch.arange(_BATCH, device=device)
    x = torch.randint(sizes.states - 1, (_BATCH, sizes.positions), generator=torch.Generator().manual_seed(1))
    batch = Batch(x=x.to(device), sample_id=number_B, epoch=torch.zeros_like(number_B))
    trained = objective.build(student, MaskedProcess(sizes.states - 1), seed=0, teacher=teacher)
    loss = trained(batch)[0]
    loss.backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    return {
        "loss": loss.detach().double().cpu(),
        "gradient": torch.cat([grad.detach().double().cpu().flatten() for grad in grads]),
    }


def _attention_errors(sizes: _Sizes, device: torch.device, dtype: torch.dtype) -> Row:
    """Of each kernel that the device has for this type, against softmax(q k^T / sqrt(dim)) v in float64; inputs rounded alike."""
    generator = torch.Generator().manual_seed(3)
    qkv = [torch.randn(2, sizes.positions, 2, 64, generator=generator).to(dtype) for _ in range(3)]
    exact = _plain_attention([one.double() for one in qkv])
    placed = [one.to(device) for one in qkv]
    found: Row = {}
    for name, kernel in {**_KERNELS, "flash_attn": None}.items():
        if kernel is None and not (device.type == "cuda" and use_flash("auto")):
            continue
        chosen = nullcontext() if kernel is None else sdpa_kernel([kernel])
        with chosen:
            row = attempt(lambda kernel=kernel: {"out": attend(*placed, flash=kernel is None).double().cpu()})
        if "out" in row:
            found[f"attention {name}"] = _error("attention", row["out"], exact)
    return found


def _plain_attention(qkv: Sequence[Tensor]) -> Tensor:
    q, k, v = qkv
    weight_NHQK = (torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("nhqk,nkhd->nqhd", weight_NHQK, v)

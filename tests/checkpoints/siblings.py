"""Small checkpoints of the formats that share MDLM's tensor names, and what their own code makes of them, in plain float64."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints.formats import write_folder

STATES, WIDTH, HEADS, BLOCKS, COND, LENGTH = 11, 16, 2, 2, 8, 6
KINDS = ("bd3lm", "bd3lm_plain", "radd", "sedd", "sedd_unscaled", "duo")
FORMAT_OF = {"bd3lm_plain": "bd3lm", "sedd_unscaled": "sedd"}
_NESTED = {
    "name": "small",
    "hidden_size": WIDTH,
    "cond_dim": COND,
    "length": LENGTH,
    "n_blocks": BLOCKS,
    "n_heads": HEADS,
    "dropout": 0.1,
}
_FLAT = {
    "hidden_dim": WIDTH,
    "cond_dim": COND,
    "model_length": LENGTH,
    "n_blocks": BLOCKS,
    "n_heads": HEADS,
    "vocab_size": STATES,
    "dropout": 0.1,
    "causal": False,
    "torch_dtype": "float32",
    "transformers_version": "4.38.2",
}
_RUN = {"ngpus": 8, "training": {"ema": 0.9999}, "data": {"train": "openwebtext"}, "tokens": STATES - 1}


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    """A `config.json` as the format's own code writes it."""
    schedule = {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20}
    found: dict[str, Any] = {
        "bd3lm": {
            **_FLAT,
            "architectures": ["BD3LM"],
            "model_type": "bd3lm",
            "block_size": LENGTH,
            "cross_attn": True,
            "adaln": True,
            "attn_backend": "flex",
            "time_conditioning": False,
            "var_min": True,
            "sampling_eps_min": 1e-3,
            "sampling_eps_max": 0.999,
        },
        "radd": {
            **_RUN,
            "noise": schedule,
            "model": {**_NESTED, "type": "ddit_wot", "use_checkpoint": False, "dtype": "float16"},
        },
        "sedd": {
            **_RUN,
            "graph": {"type": "absorb", "file": "data", "report_all": False},
            "noise": schedule,
            "model": {**_NESTED, "type": "ddit", "scale_by_sigma": kind == "sedd"},
        },
        "duo": {**_FLAT, "architectures": ["DUO"], "model_type": "DUO", "var_min": False, "return_dict": False},
    }[FORMAT_OF.get(kind, kind)]
    return {**found, **({"adaln": False} if kind == "bd3lm_plain" else {}), **changes}


def tensors_of(kind: str) -> dict[str, Tensor]:
    """Random tensors under the names of the format's own code, in their order."""
    modulated, rng = kind not in ("radd", "bd3lm_plain"), torch.Generator().manual_seed(7)
    shapes: dict[str, tuple[int, ...]] = {"vocab_embed.embedding": (STATES, WIDTH)}

    def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})})

    def norm(name: str) -> None:
        shapes.update({f"{name}.weight": (WIDTH,), **({f"{name}.bias": (WIDTH,)} if kind == "radd" else {})})

    if modulated:
        linear("sigma_map.mlp.0", 256, COND)
        linear("sigma_map.mlp.2", COND, COND)
    shapes["rotary_emb.inv_freq"] = (WIDTH // HEADS // 2,)
    for block in (f"blocks.{index}" for index in range(BLOCKS)):
        norm(f"{block}.norm1")
        linear(f"{block}.attn_qkv", WIDTH, 3 * WIDTH, bias=False)
        linear(f"{block}.attn_out", WIDTH, WIDTH, bias=False)
        norm(f"{block}.norm2")
        linear(f"{block}.mlp.0", WIDTH, 4 * WIDTH)
        linear(f"{block}.mlp.2", 4 * WIDTH, WIDTH)
        if modulated:
            linear(f"{block}.adaLN_modulation", COND, 6 * WIDTH)
    norm("output_layer.norm_final")
    linear("output_layer.linear", WIDTH, STATES)
    if modulated:
        linear("output_layer.adaLN_modulation", COND, 2 * WIDTH)
    tensors = {name: 0.3 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    half = torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS)
    return tensors | {"rotary_emb.inv_freq": 1 / 10_000**half}


def write_sibling(folder: Path, kind: str, **changes: Any) -> Path:
    """A hub folder of the format; BD3-LM's and Duo's tensors stand under `backbone.`, BD3-LM's range of times beside them."""
    tensors = tensors_of(kind)
    if FORMAT_OF.get(kind, kind) in ("bd3lm", "duo"):
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    if kind == "bd3lm":
        tensors |= {"sampling_eps_min": torch.tensor(0.001), "sampling_eps_max": torch.tensor(0.7)}
    return write_folder(folder, tensors, config_of(kind, **changes))


def rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Other tensors in a folder."""
    save_file(tensors, folder / "model.safetensors")


def output_of(kind: str, x_t: Tensor, sigma: Tensor) -> Tensor:
    """What the output layer gives at every position: the network of the papers, (B, D, S), said plainly in float64."""
    w = {name: tensor.double() for name, tensor in tensors_of(kind).items()}
    modulated = "sigma_map.mlp.0.weight" in w
    cond, x = torch.zeros(len(x_t), COND).double(), w["vocab_embed.embedding"][x_t]
    if modulated:
        sigma = torch.zeros_like(sigma) if kind == "bd3lm" else sigma
        angle = sigma.double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(128).double() / 128)
        hidden = torch.cat([angle.cos(), angle.sin()], 1) @ w["sigma_map.mlp.0.weight"].T + w["sigma_map.mlp.0.bias"]
        cond = F.silu(F.silu(hidden) @ w["sigma_map.mlp.2.weight"].T + w["sigma_map.mlp.2.bias"])

    def modulation(name: str, parts: int) -> list[Tensor]:
        if not modulated:
            return [torch.full((1, 1, WIDTH), float(index % 3 == 2)).double() for index in range(parts)]
        made = cond @ w[f"{name}.adaLN_modulation.weight"].T + w[f"{name}.adaLN_modulation.bias"]
        return list(made[:, None].split(WIDTH, 2))

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)

    phase = torch.arange(x_t.shape[1]).double()[:, None] * w["rotary_emb.inv_freq"]
    turn = torch.polar(torch.ones_like(phase), phase)  # a rotation of pairs is a product of complex numbers

    def turned(x: Tensor) -> Tensor:
        first, second = x.split(WIDTH // HEADS // 2, -1)
        found = torch.complex(first, second) * turn
        return torch.cat([found.real, found.imag], -1)

    for block in (f"blocks.{index}" for index in range(BLOCKS)):
        shift, scale, gate, shift_2, scale_2, gate_2 = modulation(block, 6)
        made = (norm(x, f"{block}.norm1") * (1 + scale) + shift) @ w[f"{block}.attn_qkv.weight"].T
        q, k, v = (one.unflatten(2, (HEADS, -1)).transpose(1, 2) for one in made.split(WIDTH, 2))
        weight = (turned(q) @ turned(k).transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        x = x + gate * ((weight @ v).transpose(1, 2).flatten(2) @ w[f"{block}.attn_out.weight"].T)
        inner = (norm(x, f"{block}.norm2") * (1 + scale_2) + shift_2) @ w[f"{block}.mlp.0.weight"].T
        inner = F.gelu(inner + w[f"{block}.mlp.0.bias"], approximate="tanh")
        x = x + gate_2 * (inner @ w[f"{block}.mlp.2.weight"].T + w[f"{block}.mlp.2.bias"])
    shift, scale = modulation("output_layer", 2)
    x = norm(x, "output_layer.norm_final") * (1 + scale) + shift
    return x @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]


def probabilities(kind: str, x_t: Tensor, t: Tensor) -> Tensor:
    """p(x_0 | x_t) at every position as each paper has it; of a masked process where it is masked."""
    alpha = 1 - 0.999 * t.double()
    sigma = -alpha.log()
    output = output_of(kind, x_t, sigma)
    if kind == "duo":
        given_rest = output.softmax(-1)
        forward = (1 - alpha)[:, None, None] / STATES + alpha[:, None, None] * F.one_hot(x_t, STATES)
        joint = given_rest * forward  # q(x_t | x_0 = v) is the same read either way
        return joint / joint.sum(-1, keepdim=True)
    tokens = output[..., :-1]
    if kind.startswith("sedd"):  # a score of SEDD's is p(x_0) / (e^σ - 1)
        scale = torch.expm1(sigma).log()[:, None, None]
        score = (tokens - scale - math.log(STATES - 1)).exp() if kind == "sedd" else tokens.exp()
        p = score * torch.expm1(sigma)[:, None, None]
        tokens = p / p.sum(-1, keepdim=True)
    else:
        tokens = tokens.softmax(-1)
    return F.pad(tokens, (0, 1))

"""A training of minutes on a distribution that is known: a denoiser by MDLM's bound, a class chain over it by the likelihood.

A plain loop with AdamW, without DeepSpeed; the report is the exact -log p of samples by numbers of steps.
"""

import time
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from di4c_lm.data.batches import Batch, BatchStream, PackedSource
from di4c_lm.data.text.synthetic import MarkovChain
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.runs.bench.gpu.trial import Found, Row, sized
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample_keyed

_STEPS = (1, 4, 16, 64)
_WARM_UP = 100  # updates until the learning rate is reached


def measure(device: torch.device, *, scale: float, seconds: float) -> Found:
    """Rows of the source's own samples, of both trainings, and of what they sample, by steps.

    `nll` is the exact mean of -log p in nats a sequence. `seconds` are for both trainings, the denoiser has two thirds.
    At scale 1 the denoiser is 8 x 512 on D = 128 positions of S = 64 states, about ten times the default of a run on a CPU.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    states, length, width = sized(64, scale, 8), sized(128, scale, 8), sized(512, scale, 32, 16)
    source = MarkovChain.random(states, length, sharpness=2.0, seed=0)
    x_ND = source.sample(sized(131_072, scale, 512), torch.Generator().manual_seed(1))
    own_ND = source.sample(sized(4096, scale, 64), torch.Generator().manual_seed(2))
    yield "data", {"nll": float(-source.log_prob(own_ND).mean())}

    process = MaskedProcess(states)
    model = DitConfig(hidden_size=width, num_blocks=sized(8, scale, 2), num_heads=sized(8, scale, 2), attention="sdpa")
    torch.manual_seed(0)
    teacher = DIT(model, num_states=states + 1).to(device)
    batches = BatchStream(PackedSource(x_ND.numpy(), seed=0), micro_batch_size=sized(256, scale, 16))
    mdlm = Mdlm(times="bell", weight_power=0.0).build(teacher, process, seed=0)
    yield "denoiser trained", _fit(mdlm, batches, device, seconds=seconds * 2 / 3)
    teacher.eval().requires_grad_(False)
    chain = ClassChainSettings(codebook_size=sized(64, scale, 4))
    student = chain.over(teacher, torch.Generator().manual_seed(0), sequences=lambda: x_ND[:4096])
    likely = Likelihood(num_lambdas=1).build(student, process, seed=0)
    yield "class chain trained", _fit(likely, batches, device, seconds=seconds / 3)
    for name, network in (("denoiser", teacher), ("class chain", student)):
        network.eval()
        for steps in _STEPS:
            shape, grid = (len(own_ND), length), uniform_grid(steps)
            found = sample_keyed(network, process, shape, grid, seed=3, batch_size=1024, device=device)
            yield f"{name}, {steps} steps", {"nll": float(-source.log_prob(found.x).mean()), "nfe": found.nfe}


def _fit(objective: nn.Module, batches: BatchStream, device: torch.device, *, seconds: float) -> Row:
    """Updates by AdamW for so many seconds; the mean loss of the first tenth and of the last."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / _WARM_UP))
    losses: list[Tensor] = []
    objective.train()
    started = time.monotonic()
    tokens = 0
    while time.monotonic() - started < seconds or len(losses) < 2:
        batch = _placed(next(islice(batches, 1)), device)
        optimiser.zero_grad(set_to_none=True)
        loss = objective(batch)[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        warm_up.step()
        losses.append(loss.detach())
        tokens += batch.x.numel()
    values = torch.stack(losses).double().cpu()
    tenth, took = max(1, len(values) // 10), time.monotonic() - started
    return {
        "parameters": sum(parameter.numel() for parameter in trained),
        "updates": len(values),
        "seconds": took,
        "tokens_per_s": tokens / took,
        "loss_first_tenth": float(values[:tenth].mean()),
        "loss_last_tenth": float(values[-tenth:].mean()),
    }


def _placed(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; labels and strata, which these objectives have no use for here, are left out."""
    parts: dict[str, Any] = {name: getattr(batch, name).to(device) for name in ("x", "sample_id", "epoch")}
    return Batch(**parts)

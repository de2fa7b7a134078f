"""Toy runs for the tests of training, one after the other: `python toy.py '[{"run_dir": ..., ...}, ...]'`, under any launcher.

Its objective has what is awkward in the real one: a weight used outside the module that owns it by an autograd function that uses it
again in its backward pass, parameters unused in half of the steps, a frozen parameter, a tied one, a buffer, and a frozen teacher.
`"real": true` takes the real one.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from di4c_lm.data.batches import Batch
from di4c_lm.training.ema import Ema
from di4c_lm.training.partition import Partition
from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig

S, H, D = 13, 12, 5


class Batches:
    """Step n's global batch is sequences [n G, (n + 1) G), whatever the number of ranks."""

    def __init__(self, micro: int, rank: int, world: int) -> None:
        self.micro, self.rank, self.world, self.taken = micro, rank, world, 0
        self.signals: dict[int, int] = {}  # to send oneself, by the number of steps done

    def __next__(self) -> Batch:
        if self.signals and self.taken * self.world * self.micro % 8 == 0:
            number = self.signals.pop(self.taken * self.world * self.micro // 8, None)
            if number is not None:
                os.kill(os.getpid(), number)
        first = (self.taken * self.world + self.rank) * self.micro
        self.taken += 1
        ids = torch.arange(first, first + self.micro)
        x = torch.stack([torch.randint(S, (D,), generator=torch.Generator().manual_seed(int(i))) for i in ids])
        return Batch(x=x, sample_id=ids, epoch=torch.zeros_like(ids))

    def state_dict(self) -> dict[str, Any]:
        return {"sequences": self.taken * self.world * self.micro}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["sequences"] // (self.world * self.micro)


class OutputHead(torch.autograd.Function):
    """features @ weight.T, keeping the weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight)
        return features @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        features, weight = ctx.saved_tensors
        (grad,) = grads
        return grad @ weight, grad.flatten(0, -2).T @ features.flatten(0, -2)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(H, S, bias=False)


@dataclass
class Prediction:
    features: Tensor
    weight: Tensor  # taken inside the student's forward, used after it


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(S, H)
        self.body = nn.Sequential(nn.Linear(H, 2 * H), nn.GELU(), nn.Linear(2 * H, H))
        self.latent = nn.Sequential(nn.Linear(1, H), nn.GELU(), nn.Linear(H, H))
        self.gain = nn.Parameter(torch.ones(H))
        self.scale = nn.Parameter(torch.full((H,), 0.5), requires_grad=False)
        self.output_layer = Head()
        self.again = self.output_layer.linear  # tied: a second name for the same weight
        self.register_buffer("angles", torch.linspace(0, 1, H))

    def forward(self, x: Tensor, lam: Tensor | None) -> Prediction:
        hidden = self.embed(x)
        if lam is not None:
            hidden = hidden + self.latent(lam[:, None, None].to(hidden.dtype))
        hidden = self.body(hidden) * self.gain * self.scale + self.angles.to(hidden.dtype)
        return Prediction(hidden, self.output_layer.linear.weight)


class Objective(nn.Module):
    def __init__(self, *, bad: list[int], external: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = Student()
        self.teacher = (nn.Linear(D, D).requires_grad_(False),)
        self.bad, self.external = bad, external

    def external_parameters(self) -> list[tuple[nn.Module, nn.Parameter]]:
        weight = self.student.output_layer.linear.weight
        assert isinstance(weight, nn.Parameter)
        return [(self, weight)] if self.external else []

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        step = int(batch.sample_id[0]) // 8
        lam = batch.sample_id.float() % 7 / 7 if step % 2 else None
        with torch.no_grad():
            self.student(batch.x, None)  # as the objective samples from the student
            target = self.teacher[0](batch.x.float())
        prediction = self.student(batch.x, lam)
        logits = OutputHead.apply(prediction.features, prediction.weight)
        assert isinstance(logits, Tensor)
        loss_B = nn.functional.cross_entropy(logits.float().transpose(1, 2), batch.x, reduction="none").mean(1)
        loss = loss_B.mean() + 1e-3 * target.mean()
        if any(int(i) in self.bad for i in batch.sample_id):
            loss = loss * torch.tensor(float("inf"))
        return loss, {"distil": loss_B.detach().mean()}


def real_objective(spec: dict[str, Any]) -> Any:
    """Di4C on small DiTs: λ's path is trained, and goes unused by the teacher. `times`: MDLM's, whose times follow the loss."""
    from di4c_lm.mixtures.adaln import AdaLNSettings
    from di4c_lm.mixtures.class_chain import ClassChainSettings
    from di4c_lm.mixtures.sequential import SequentialSettings
    from di4c_lm.mixtures.token import TokenSettings
    from di4c_lm.networks.dit import DIT, DitConfig
    from di4c_lm.objectives.di4c import Di4C
    from di4c_lm.objectives.likelihood import Likelihood
    from di4c_lm.objectives.mdlm import Mdlm
    from di4c_lm.objectives.teacher_step import TeacherStep
    from di4c_lm.processes.masked import MaskedProcess

    torch.manual_seed(0)
    teacher = DIT(DitConfig(hidden_size=16, num_blocks=3, num_heads=2, cond_dim=8), num_states=S + 1)
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.2)
    if spec.get("path") == "times":
        return Mdlm(times="least_variance").build(teacher, MaskedProcess(S), seed=0)
    if spec.get("path") == "classes":
        mixture: Any = ClassChainSettings(codebook_size=5, init_scale=2.0)
    elif spec.get("path") == "sequential":
        mixture = SequentialSettings(order="random", candidates=4)
    else:
        kind = {"adaln": AdaLNSettings, "token": TokenSettings}[spec.get("path", "adaln")]
        mixture = kind(inject_at=1, init_scale=2.0)
    student = mixture.over(teacher, torch.Generator().manual_seed(1))
    if spec.get("frozen", False):
        student.network.vocab_embed.requires_grad_(False)
    if "lora" in spec:
        from di4c_lm.networks.lora import LoraSettings

        torch.manual_seed(2)
        student.adapt(LoraSettings(rank=2, alpha=4, targets=tuple(spec["lora"])))
    student.activation_checkpointing = spec.get("checkpointing", False)
    frozen = teacher.to(torch.bfloat16 if spec.get("dtype") == "bfloat16" else torch.float32)
    chosen = Di4C(num_lambdas=3, delta=0.3, teacher_step=TeacherStep(distribution="fraction", size=0.5))
    chosen = Likelihood(num_lambdas=2) if spec.get("path") in ("classes", "sequential") else chosen
    return chosen.build(student, MaskedProcess(S), seed=0, teacher=frozen)


class CheckedEma(Ema):
    """Beside the average that is sharded, a plain one of whole float32 masters on rank 0, which must equal it whenever it is gathered.

    The plain one lives in a file, so that a resumed run goes on with it.
    """

    path: Path  # of the run

    def __init__(self, partition: Partition, decay: float) -> None:
        super().__init__(partition, decay)
        self.plain = partition.gather(partition.flats)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.plain:
            self.plain = load_file(self.path)

    def update(self) -> None:
        super().update()
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for name, master in self._partition.gather(self._partition.flats).items():
            self.plain[name] = decay * self.plain[name] + (1 - decay) * master
        if self.plain:
            save_file(self.plain, self.path)

    def gather(self) -> dict[str, Tensor]:
        found = super().gather()
        assert found.keys() == self.plain.keys()
        for name, value in self.plain.items():
            assert value.dtype == found[name].dtype == torch.float32
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
        return found


def settings(spec: dict[str, Any], world_size: int) -> dict[str, Any]:
    """The sections that `train` gets; eight sequences a step, whatever the number of ranks."""
    accumulation = spec.get("accumulation", 1)
    return {
        "train": TrainConfig(
            steps=spec.get("steps", 20),
            micro_batch_size=8 // world_size // accumulation,
            gradient_accumulation=accumulation,
            dtype=spec.get("dtype", "float32"),
            save_every=spec.get("save_every", 5),
            resume=spec.get("resume", "auto"),
            log_every=1,
            max_bad_steps=spec.get("max_bad_steps", 3),
            rank_timeout_s=spec.get("rank_timeout_s", 600),
        ),
        "optim": OptimConfig(
            kind=spec.get("optim", "adamw"),
            lr=spec.get("lr", 1e-2),
            warmup_steps=4,
            weight_decay=0.01,
            clip_norm=0.5,
            ema_decay=0.9,
            mixture_lr_scale=0.5,
        ),
        "zero": ZeroConfig(stage=spec.get("stage", 0), offload=spec.get("offload", False), config=spec.get("config")),
    }


def is_latent(name: str) -> bool:
    return name.startswith("latent")


def is_matrix(name: str) -> bool:
    return name.startswith(("body", "latent.2"))


def run(spec: dict[str, Any], rank: int, world_size: int) -> int:
    """One run; the signal that ended it, or 0. `kill_at`, `term_at`: the step in which the last rank sends itself a signal."""
    from di4c_lm.training import loop

    run_dir = Path(spec["run_dir"])
    loop.Ema = CheckedEma if spec.get("checked_ema") else Ema
    CheckedEma.path = run_dir / "plain_ema.safetensors"
    sections = settings(spec, world_size)
    real = spec.get("real", False)
    objective = (
        real_objective(spec) if real else Objective(bad=spec.get("bad", []), external=spec.get("external", True))
    )
    held: Any = objective.teacher
    # the likelihood has no teacher but the backbone, MDLM none
    frozen: Any = getattr(objective.student, "network", nn.Identity()) if held is None else held
    teacher: Any = frozen if real or held is None else held[0]
    before = [p.clone() for p in teacher.parameters()]
    batches = Batches(sections["train"].micro_batch_size, rank, world_size)
    if rank == world_size - 1:
        fatal = {"kill_at": signal.SIGKILL, "term_at": signal.SIGTERM}
        batches.signals = {spec[key]: number for key, number in fatal.items() if key in spec}
    trained = loop.train(
        objective,
        batches,
        **sections,
        run_dir=run_dir,
        device="cpu",
        is_latent=is_latent,
        matrices={name for name, p in objective.student.named_parameters() if is_matrix(name) and p.ndim == 2},
        gather_raw=True,
    )
    after = list(teacher.parameters())
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(before, after, strict=True))
    if trained.raw:
        for name, weights in {"raw": trained.raw, "ema": trained.ema}.items():
            save_file({key: value.clone() for key, value in weights.items()}, run_dir / f"{name}.safetensors")
    return trained.progress.signal


def main(specs: list[dict[str, Any]]) -> int:
    from di4c_lm.training.distributed import init_distributed, shutdown

    world = init_distributed("cpu")
    torch.set_num_threads(1)
    signals = [run(spec, world.rank, world.size) for spec in specs]
    shutdown()
    return 128 + signals[-1] if signals[-1] else 0


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    sys.exit(main(json.loads(arguments[0])))

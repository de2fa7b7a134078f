"""The fence around DeepSpeed: all that the training loop may ask of it, and the only file that imports it."""

import dataclasses
import gc
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn

from di4c_lm.training.deepspeed_config import deepspeed_config
from di4c_lm.training.distributed import World, is_main
from di4c_lm.training.muon import Muon
from di4c_lm.training.partition import Flats, Partition
from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig
from di4c_lm.training.zero import forget_gradients, masters_of, pieces_of, refresh_weights

logger = logging.getLogger(__name__)
T = TypeVar("T")
_STUDENT = "student."


class Optimizer(torch.optim.AdamW):
    """AdamW, and Muon for the groups with `muon`; DeepSpeed hands it flat pieces of the parameters. Before `bind` a step does nothing.

    `momentum` and `dtype`, the type of its products, are Muon's. With `clip_norm` it clips by global norm and skips what is not finite, as
    DeepSpeed's own wrappers do at the other stages; DeepSpeed reads `overflow` and `_global_grad_norm` from whatever stands as its
    optimizer.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        clip_norm: float | None,
        momentum: float,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__(groups, **options)
        self._clip_norm = clip_norm
        self._momentum = momentum
        self._dtype = dtype
        self._global_grad_norm = 0.0
        self.overflow = False
        self._muon: Muon | None = None

    def bind(self, masters: Sequence[Tensor], partition: Partition) -> None:
        """Begin with empty moments for `masters`, which lie as `partition` says. All ranks must call it."""
        self._muon = Muon(masters, partition, momentum=self._momentum, dtype=self._dtype)
        matrices = {name for group in self.param_groups if group["muon"] for name in group["names"]}
        for master, names in zip(masters, self._muon.names_of, strict=True):
            keys = ("exp_avg", "exp_avg_sq") if matrices.isdisjoint(names) else ("exp_avg",)
            self.state[master].update({key: torch.zeros_like(master.detach()) for key in keys})
            self.state[master]["step"] = torch.zeros((), dtype=torch.float32, device=master.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update, or none where it clips and the gradient is not finite."""
        if self._muon is None or not self._clip():
            return
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._muon.update(group, self.state)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _clip(self) -> bool:
        """Whether the gradient is finite; True as well where others have seen to it."""
        if self._clip_norm is None:
            return True
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.overflow = not bool(norm.isfinite())
        self._global_grad_norm = float("inf") if self.overflow else norm.item()
        if not self.overflow:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
        return not self.overflow


def parameter_groups(
    trained: Mapping[str, nn.Parameter],
    optim: OptimConfig,
    *,
    is_latent: Callable[[str], bool],
    matrices: Collection[str],
) -> list[dict[str, Any]]:
    """Groups of one rate each: the parameters of λ learn at a rate of their own, and so do the matrices that Muon updates.

    Raises `ValueError` where Muon is asked for and has no matrix to update.
    """
    wants_muon = optim.kind == "muon"
    groups: dict[tuple[bool, float], dict[str, nn.Parameter]] = {}
    for name, p in trained.items():
        muon = wants_muon and name in matrices
        groups.setdefault((muon, optim.mixture_lr_scale if is_latent(name) else 1.0), {})[name] = p
    if wants_muon and not any(muon for muon, _ in groups):
        raise ValueError("optim must be adamw where no matrix of a transformer block is trained, got 'muon'")
    return [
        {
            "params": list(named.values()),
            "names": list(named),
            "muon": muon,
            "lr": optim.lr,
            "lr_scale": scale * (optim.muon_lr / optim.lr if muon else 1.0),
        }
        for (muon, scale), named in sorted(groups.items(), key=lambda item: item[0])
    ]


class _Reach(torch.autograd.Function):
    """The loss, with gradients that are all NaN if it is not finite, and zero for each of `parameters` that it does not depend on.

    DeepSpeed needs the zeros where a parameter goes unused in a micro batch (the λ path, say): CPU offload would lose what earlier micro
    batches gave it, and ranks that differ would reduce different buckets.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.poison = torch.where(loss.isfinite(), 1.0, float("nan")).to(loss.dtype)
        ctx.zeros = [p.new_zeros(()).expand(p.shape) for p in parameters]
        return loss * ctx.poison

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads[0] * ctx.poison, *ctx.zeros


def _import_deepspeed(*, on_cpu: bool) -> Any:
    """DeepSpeed, quiet, and without its probing for compilers and its build of a shared-memory operator on CPU machines."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    known = "A module has unknown inputs or outputs type"  # see `_adopt_hidden_parameters`
    logging.getLogger("DeepSpeed").addFilter(lambda record: known not in record.getMessage())
    if on_cpu:
        deepspeed.ops.__dict__["__compatible_ops__"] = defaultdict(bool)
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*deprecated", category=FutureWarning)
    return deepspeed


@final
class Engine:
    """`objective` under DeepSpeed ZeRO 0-3. `objective.student` is trained; nothing else in it may hold a parameter.

    A frozen teacher belongs outside `nn.Module`'s registration (in a tuple, say): DeepSpeed then neither casts, partitions, optimises nor
    saves it. Under ZeRO-3 a parameter that is used outside the `forward` of the module that owns it must be named by
    `objective.external_parameters() -> list[tuple[nn.Module, nn.Parameter]]` (the module that uses it, the parameter).
    Muon's iterations are in bfloat16 where the weights are, or `objective.in_bfloat16` says so.
    `is_latent(name)` tells which of the student's parameters learn at `optim.mixture_lr_scale` times the rate; `matrices` are the names of
    those that are Muon's to update, where the run asks for it.

    Errors: `ValueError` for parameters outside the student, for none to train (or none by Muon, where that is asked for), and for a
    contradictory `zero.config`.
    """

    def __init__(
        self,
        objective: nn.Module,
        *,
        train: TrainConfig,
        optim: OptimConfig,
        zero: ZeroConfig,
        world: World,
        is_latent: Callable[[str], bool] | None = None,
        matrices: Collection[str] = (),
    ) -> None:
        on_cpu = world.device.type == "cpu"
        deepspeed = _import_deepspeed(on_cpu=on_cpu)
        trained = _trained_parameters(objective)
        in_bfloat16 = train.dtype == "bfloat16"
        plain = zero.stage == 0 and not in_bfloat16
        config = deepspeed_config(
            train,
            optim,
            zero,
            world_size=world.size,
            num_parameters=sum(p.numel() for p in trained.values()),
            on_cpu=on_cpu,
        )
        shapes = {name: tuple(p.shape) for name, p in trained.items()}
        exact = _agreed_weights(trained, world.device) if in_bfloat16 else {}
        groups = parameter_groups(
            trained,
            optim,
            is_latent=is_latent or (lambda name: False),
            matrices=matrices,
        )
        if plain:
            config["gradient_clipping"] = 0.0
        self._optimizer = Optimizer(
            groups,
            clip_norm=optim.clip_norm if plain else None,
            momentum=optim.muon_momentum,
            dtype=torch.bfloat16 if in_bfloat16 or getattr(objective, "in_bfloat16", False) else torch.float32,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self._objective = objective
        self._reached = trained if zero.stage < 3 else {}
        self._device = world.device
        self._is_stage_3 = zero.stage == 3
        self._deepspeed = deepspeed
        self._frozen = _frozen_weights(objective)
        external = getattr(objective, "external_parameters", list)()  # while each is whole
        with exact_buffers(objective):
            self._engine, *_ = deepspeed.initialize(model=objective, optimizer=self._optimizer, config=config)
        if zero.stage == 3:
            for module, parameter in external:
                deepspeed.zero.register_external_parameter(module, parameter)
            _adopt_hidden_parameters(deepspeed, objective)
        self._masters = masters_of(self._engine.optimizer, trained)
        self.partition = Partition(
            flats=[master.detach().view(-1) for master in self._masters],
            pieces=list(pieces_of(self._engine.optimizer, trained)),
            shapes=shapes,
            replicated=plain,
        )
        self._optimizer.bind(self._masters, self.partition)
        for piece, master in self.partition.named(self.partition.flats):
            if piece.name in exact:
                master.copy_(exact[piece.name][piece.start : piece.start + piece.numel])

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (scalar, mean over the examples) and metrics of one micro batch.

        The tensors of `batch`, a dataclass, are moved to the device.
        """
        return self._engine(_to_device(batch, self._device))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro batch. A loss that is not finite makes them all NaN, and with them this step's on all ranks."""
        self._engine.backward(_Reach.apply(loss, *self._reached.values()))

    def step(self, lr: float) -> bool:
        """After each `backward`: at the last micro batch of a step, one update with learning rate `lr`.

        False if the update was skipped, on all ranks alike, because the gradient was not finite."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if not self.is_boundary:
            self._engine.step()
            return False
        wrapper = self._engine.optimizer
        if self._is_stage_3:
            wrapper.finalize_gradient_accumulation_boundary()
        self._engine.step()
        if self._is_stage_3:
            forget_gradients(wrapper)
        return self._engine.was_step_applied()

    @property
    def is_boundary(self) -> bool:
        """True where the next `step` updates the weights."""
        return self._engine.is_gradient_accumulation_boundary()

    @property
    def grad_norm(self) -> float:
        """Global L2 norm of the last step's gradient before clipping; inf where it was not finite."""
        return float(self._engine.get_global_grad_norm() or 0.0)

    def gather(self) -> dict[str, Tensor]:
        """The student's float32 master weights under its own `state_dict` names, whole, on the CPU of rank 0; empty elsewhere."""
        return self.complete(self.partition.gather(self.partition.flats))

    def complete(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Trained parameters, gathered, as a full `state_dict` of the student: frozen parameters, buffers and tied names added."""
        student = self._objective.get_submodule("student")
        whole = {**parameters, **self._frozen}
        names = {id(p): name for name, p in student.named_parameters()}
        for name, p in student.named_parameters(remove_duplicate=False):
            if names[id(p)] in whole:
                whole[name] = whole[names[id(p)]]
        kept = student.state_dict().keys()
        whole |= {name: b.detach().cpu().clone() for name, b in student.named_buffers() if name in kept}
        return whole if is_main() else {}

    def flats(self) -> dict[str, Flats]:
        """Tensors a checkpoint keeps, laid out like the masters; filled in place on resume, then `load_state_dict`.

        They are the masters and AdamW's two moments, of which Muon has the first alone.
        """
        states = [self._optimizer.state[master] for master in self._masters]
        empty = torch.empty(0)
        moments = {key: [state.get(key, empty).view(-1) for state in states] for key in ("exp_avg", "exp_avg_sq")}
        return {"master": self.partition.flats, **moments}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside those tensors. The optimiser's count of updates, the same for all parameters."""
        return {"adam_steps": max((int(self._optimizer.state[master]["step"]) for master in self._masters), default=0)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`; also carries the masters into the weights that the network computes with."""
        for master in self._masters:
            self._optimizer.state[master]["step"].fill_(state["adam_steps"])
        refresh_weights(self._engine.optimizer, self._masters)

    def close(self) -> None:
        """Free the engine, so that another can follow in this process."""
        self._engine.destroy()
        self._masters, self._reached = [], {}
        del self._engine
        gc.collect()


@contextmanager
def exact_buffers(module: nn.Module) -> Iterator[None]:
    """Casts of `module` in the block leave its buffers as they were: the frequencies of rotary positions, say, whose rounding to bfloat16
    would turn late positions by radians."""
    exact = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    yield
    for name, buffer in module.named_buffers():
        if buffer.dtype != exact[name].dtype:
            buffer.data = exact[name].to(buffer.device)


def _trained_parameters(objective: nn.Module) -> dict[str, nn.Parameter]:
    """The student's trainable parameters, by the student's own names."""
    named = dict(objective.named_parameters())
    outside = [name for name in named if not name.startswith(_STUDENT)]
    if outside:
        raise ValueError(
            f"{type(objective).__name__} holds parameters outside its student: {outside[:3]}; "
            "keep a frozen network where nn.Module does not register it, in a tuple for example"
        )
    trained = {name.removeprefix(_STUDENT): p for name, p in named.items() if p.requires_grad}
    if not trained:
        raise ValueError(f"{type(objective).__name__}.student has no parameter to train: all are frozen")
    return trained


def _frozen_weights(objective: nn.Module) -> dict[str, Tensor]:
    """The student's frozen parameters as they are before DeepSpeed rounds or partitions them, in float32 on the CPU of rank 0."""
    named = objective.get_submodule("student").named_parameters()
    frozen = {name: p for name, p in named if not p.requires_grad}
    return {name: p.detach().float().cpu().clone() for name, p in frozen.items()} if is_main() else {}


def _adopt_hidden_parameters(deepspeed: Any, objective: nn.Module) -> None:
    """Keep parameters whole through the backward pass where ZeRO-3 does not see it begin.

    It finds the tensors that a module returns in tuples, lists and dicts, not in other objects (a `Prediction`). The own parameters of
    such a module become the objective's, whose loss it does see.
    """

    def adopt(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, (Tensor, tuple, list, dict)):
            for parameter in module.parameters(recurse=False):
                deepspeed.zero.register_external_parameter(objective, parameter)

    for module in objective.modules():
        module.register_forward_hook(adopt)


def _agreed_weights(trained: dict[str, nn.Parameter], device: torch.device) -> dict[str, Tensor]:
    """Rank 0's weights in float32, flat: DeepSpeed would make the masters from their roundings to bfloat16."""
    exact = {name: p.detach().to(device, torch.float32, copy=True).view(-1) for name, p in trained.items()}
    for value in exact.values():
        torch.distributed.broadcast(value, src=0)
    return {name: value.cpu() for name, value in exact.items()}


def _to_device(batch: T, device: torch.device) -> T:
    """`batch`, a dataclass, with its tensors, and those of the dataclasses in it, on `device`."""
    assert dataclasses.is_dataclass(batch) and not isinstance(batch, type)
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    moved = {name: v.to(device, non_blocking=True) for name, v in fields.items() if isinstance(v, Tensor)}
    inner = {name: _to_device(v, device) for name, v in fields.items() if dataclasses.is_dataclass(v)}
    return dataclasses.replace(batch, **moved, **inner)

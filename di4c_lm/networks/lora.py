"""LoRA (Hu et al. 2022) by peft: a network is trained through low-rank changes of some of its linear maps, which a file has merged."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from di4c_lm.core.settings import Texts, at_least, check, positive, section, setting

_NAME = "default"  # of the adapter, as peft calls it
_BASE, _LOW = ".base_layer.", ".lora_"  # in the names of a map that is adapted


@section
class LoraSettings:
    """Low-rank adapters: W + (alpha / rank) B A in place of W, B and A alone trained, and merged into W in what is exported."""

    rank: int = setting(
        0, "r, rows of A and columns of B; 0: the network itself is trained, as mixture or objective say"
    )
    alpha: int = setting(16, "α: the change is scaled by α / rank")
    dropout: float = setting(0.0, "share of the adapters' inputs that is dropped in training")
    targets: Texts = setting(
        (), "linear maps that are adapted, by the ends of their names: [q_proj, v_proj], or attn_qkv of a DiT"
    )

    adapters: bool = setting(
        True,
        "save the adapters in peft's format too, in adapters/ of the run's folder, beside the student that has them merged",
    )

    def __post_init__(self) -> None:
        at_least(self, 0, "rank")
        positive(self, "alpha")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        if self.rank:
            check(
                len(self.targets) > 0,
                "targets",
                self.targets,
                "at least one name of a linear map where rank is above 0",
            )

    def unused(self) -> dict[str, str]:
        """All but the rank where that is 0."""
        return {} if self.rank else dict.fromkeys(("alpha", "dropout", "targets", "adapters"), "where lora.rank=0")


def adaptable(network: nn.Module) -> list[str]:
    """The names of a network's linear maps but for its output head, whose weight is read beside the map."""
    head: Any = network
    kept = {id(parameter) for parameter in head.output_head().parameters}
    linear = [(name, one) for name, one in network.named_modules() if isinstance(one, nn.Linear)]
    return [name for name, one in linear if id(one.weight) not in kept]


def targeted(network: nn.Module, settings: LoraSettings) -> list[str]:
    """The names of the linear maps that `targets` mean. Raises `ValueError` for a target that is the end of none, and lists those."""
    names = adaptable(network)
    ends = ", ".join(dict.fromkeys(map(_end, names)))
    for target in settings.targets:
        found = any(_ends(name, target) for name in names)
        check(found, "lora.targets", target, f"ends of the names of linear maps, which are {ends}")
    return [name for name in names if any(_ends(name, target) for target in settings.targets)]


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _end(name: str) -> str:
    """The least that tells a map from others: its name, and of one in a row of modules theirs and its number."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def of_adapters(network: nn.Module, settings: LoraSettings) -> int:
    """How many parameters the adapters have. Raises `ValueError` as `targeted` does."""
    maps: list[Any] = [network.get_submodule(name) for name in targeted(network, settings)]
    return sum(settings.rank * (one.in_features + one.out_features) for one in maps)


def adapt(network: nn.Module, settings: LoraSettings) -> None:
    """Put adapters on the maps that are targeted, A drawn from the global generator and B zero, and freeze all else.

    Raises `ValueError` as `targeted` does.
    """
    names = targeted(network, settings)
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names, bias="none"
    )
    inject_adapter_in_model(config, network, adapter_name=_NAME)


def of_state(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A and B of each map that is adapted, as <name of the map>.lora_A and .lora_B; `state` may be that of a mixture on the network."""
    plain = {name.removeprefix("network."): tensor for name, tensor in state.items()}
    adapted = [name for name, module in network.named_modules() if hasattr(module, "lora_A")]
    return {
        f"{name}.lora_{letter}": plain[f"{name}.lora_{letter}.{_NAME}.weight"] for name in adapted for letter in "AB"
    }


def merged(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapted network under the names that it has without: W + (α / rank) B A where there was W."""
    found = {name.replace(_BASE, "."): tensor for name, tensor in tensors.items() if _LOW not in name}
    for name, module in network.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        low, high = (tensors[f"{name}.lora_{letter}.{_NAME}.weight"] for letter in "AB")
        weight, layer = found[f"{name}.weight"], module
        scale: float = layer.scaling[_NAME]  # pyright: ignore[reportIndexIssue, reportAssignmentType, reportArgumentType]
        wide = torch.promote_types(weight.dtype, torch.float32)
        found[f"{name}.weight"] = (weight.to(wide) + scale * (high.to(wide) @ low.to(wide))).to(weight.dtype)
    return found

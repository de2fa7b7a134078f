"""Low-rank adapters in peft's own format, under the names of the checkpoint that they belong to: `PeftModel.from_pretrained` loads them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from di4c_lm.checkpoints import dream, llada, llama
from di4c_lm.checkpoints.load import find
from di4c_lm.core.files import save_tensors
from di4c_lm.networks.lora import LoraSettings, of_state

_PREFIX, _WEIGHT = "base_model.model.", ".weight"


def module_names(source: str | None) -> Callable[[str], str]:
    """From a module's name here to its name in the checkpoint at `source`; of formats other than decoders', and of none, the same."""
    folder = None if source is None else find(source)
    for one in (llada, dream, llama):
        if folder is not None and folder.is_dir() and one.recognises(folder):
            to_theirs = one.FORMAT.to_theirs
            return lambda name: to_theirs(name + _WEIGHT).removesuffix(_WEIGHT)
    return lambda name: name


def write(
    folder: Path, network: nn.Module, state: Mapping[str, Tensor], settings: LoraSettings, source: str | None
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        network: the one that is adapted.
        state: its parameters by their names in memory, or those of a mixture on it.
        settings: how it was adapted.
        source: the checkpoint of the network that was adapted, whose names the adapters have; None: a network that was made here.
    """
    from peft import LoraConfig

    name_of = module_names(source)
    tensors: dict[str, Tensor] = {}
    for name, tensor in of_state(network, state).items():
        module, letter = name.rsplit(".", 1)
        tensors[f"{_PREFIX}{name_of(module)}.{letter}{_WEIGHT}"] = tensor.detach().cpu().contiguous()
    names = [name_of(name) for name in dict.fromkeys(name.rsplit(".", 1)[0] for name in of_state(network, state))]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names,
        bias="none",
        base_model_name_or_path=source,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "adapter_model.safetensors", tensors)
    config.save_pretrained(str(folder))

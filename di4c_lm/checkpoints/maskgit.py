"""The `.pth` files of MaskGIT-pytorch and of Di4C's ImageNet students.

A `.pth` is {iter, global_epoch, model_state_dict, optimizer_state_dict}; of these the third alone is read. It states neither heads nor
codes: ours do so beside it, and for the published files 16 and 1,024 are known.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from di4c_lm.checkpoints.files import write_pickle
from di4c_lm.checkpoints.pickles import plain, read_pickle, state_in
from di4c_lm.checkpoints.published import refuse_mixture
from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.mixtures.base import NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.maskgit import MaskGitConfig

ARCHITECTURE = "di4c_lm.MaskGit"
_STATE, _EXTRA = "model_state_dict", "di4c_lm"
_PUBLISHED_HEADS, _PUBLISHED_CODES, _PUBLISHED_ROWS = 16, 1024, 2026
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")


def recognises(path: Path) -> bool:
    """Whether this may be one: any file."""
    return path.is_file()


def read(path: Path, hints: Hints) -> Weights:
    """The transformer in a `.pth` file; the heads and the number of codes of `hints` serve where it states neither.

    Raises `ValueError` that names the file, what was expected and what was found, for one that is absent, truncated, of another format,
    carries code, or whose tensors do not make a network.
    """
    content = read_pickle(path)
    state = state_in(content, path, _STATE)
    tensors = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    for name, dims in (("tok_emb.weight", 2), ("pos_emb", 3), ("transformer.layers.0.1.fn.net.0.weight", 2)):
        if name not in tensors or tensors[name].dim() != dims:
            raise ValueError(
                f"{path}: expected the tensor {name} of MaskGIT with {dims} axes, found {_found(tensors, name)}"
            )
    says = plain(content.get(_EXTRA, {}))
    num_rows, width = tensors["tok_emb.weight"].shape
    heads = hints.num_heads or says.get("num_heads") or _PUBLISHED_HEADS
    codes = hints.num_codes or says.get("num_codes") or (_PUBLISHED_CODES if num_rows == _PUBLISHED_ROWS else None)
    if codes is None:
        raise ValueError(
            f"{path}: {num_rows} tokens are codes, MASK, classes and the dropped class, and the file does not say how many are codes: "
            "give num_codes="
        )
    if num_rows - codes - 2 < 1:
        raise ValueError(f"{path}: {num_rows} tokens leave no class beside num_codes={codes}")
    if width % heads:
        raise ValueError(
            f"{path}: num_heads must divide the width {width} of the tensors, got {heads}: give num_heads="
        )
    model = MaskGitConfig(
        hidden_size=width,
        num_blocks=1 + max(int(found[1]) for found in map(_LAYER.match, tensors) if found),
        num_heads=heads,
        mlp_size=len(tensors["transformer.layers.0.1.fn.net.0.weight"]),
        dropout=says.get("dropout", 0.1),
    )
    mixture = any(name.startswith("latent_projection.") for name in tensors)
    weights = Weights(
        tensors=tensors,
        architecture=ARCHITECTURE,
        model=model,
        sizes={
            "num_codes": codes,
            "num_classes": num_rows - codes - 2,
            "length": tensors["pos_emb"].shape[1] - 1,
        },
        mixture=TokenSettings() if mixture else NoMixture(),
    )
    weights.check(path)
    return weights


def write(path: Path, weights: Weights) -> None:
    """Write a `.pth` that the published code reads, whole or not at all. Raises `ValueError` for a λ that it does not have."""
    refuse_mixture(weights, "a .pth of Di4C", published_allowed=True)
    weights.check(f"saving to {path}")
    says = {
        "num_heads": weights.model.num_heads,
        "num_codes": weights.sizes["num_codes"],
        "dropout": weights.model.dropout,
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.tensors.items()}
    content = {"iter": 0, "global_epoch": 0, _STATE: state, "optimizer_state_dict": {}, _EXTRA: says}
    write_pickle(path, content)


def _found(tensors: Mapping[str, Tensor], name: str) -> str:
    if name in tensors:
        return f"one of shape {tuple(tensors[name].shape)}"
    return f"{len(tensors)} others, such as {', '.join(list(tensors)[:3])}" if tensors else "no tensor"

"""What the formats of decoders share: chosen by `architectures` and tensor names, settings from shapes, the mask of the checkpoint."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from di4c_lm.checkpoints import published
from di4c_lm.checkpoints.files import CONFIG_FILE, read_weights_file, write_checkpoint
from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.core.files import read_json
from di4c_lm.networks.base import frequencies
from di4c_lm.networks.decoder import DecoderConfig

ARCHITECTURE = "di4c_lm.Decoder"
_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
_OF_FIRST_BLOCK = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.gate_proj.weight")
_INV_FREQ = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_DITS = frozenset({"MDLM", "BD3LM", "DUO"})  # the architectures that other formats read
_KEPT_HEAD = "kept_head"  # in what is known of the source: a tied head that was in the file too


@dataclass(frozen=True, kw_only=True)
class Format:
    """A family of checkpoints: its keys, its names, and what its own code always does.

    `keys` are those of its `config.json` by what they say here; `fixed` what it may say beside, and the only values that are built.
    """

    name: str
    architectures: tuple[str, ...]
    keys: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]]
    defaults: Mapping[str, Any]  # where the config does not say
    to_ours: Callable[[str], str]
    to_theirs: Callable[[str], str]
    written_as: Callable[[DecoderConfig], tuple[str, str]]  # of `architectures` and `model_type`, where no source says
    shift: bool = False

    def recognises(self, path: Path) -> bool:
        """Whether the `architectures` of a folder's `config.json` are among those of the format."""
        if not (path / CONFIG_FILE).is_file():
            return False
        return any(name in self.architectures for name in architectures_of(read_json(path / CONFIG_FILE)))

    def read(self, folder: Path, hints: Hints) -> Weights:
        """The network in a folder; none of the code in it is imported.

        Raises:
            ValueError: a setting that is not built here, a missing file, a config that contradicts the tensors, a mask that is none of the
                vocabulary; tensors missing, unknown or misshapen, all of them listed.
        """
        path = folder / CONFIG_FILE
        config = read_json(path)
        says = self._stated(config, path)
        mask_id = mask_of(folder, says.pop("mask_id", None), hints.mask_id)
        tensors = {self.to_ours(name): tensor for name, tensor in read_weights_file(folder).items()}
        model, num_rows = self._shape(tensors, says, hints, folder)
        _check_mask(mask_id, num_rows, path)
        length = says.get("length", hints.length)
        if length is None:
            raise ValueError(f"{path}: expected {self.keys['length']}, the positions it was trained for: give length=")
        kept_head = model.tied and tensors.pop(_HEAD, None) is not None
        extra = published.read_extra(config, self.name, **({_KEPT_HEAD: True} if kept_head else {}))
        weights = Weights(
            tensors={name: tensor for name, tensor in tensors.items() if not _INV_FREQ.fullmatch(name)},
            architecture=ARCHITECTURE,
            model=model,
            sizes={"num_states": num_rows, "num_rows": num_rows, "mask_id": mask_id, "length": length},
            extra=extra,
        )
        weights.check(folder)
        return weights

    def write(self, folder: Path, weights: Weights) -> None:
        """Write a folder under the format's names, whole or not at all. Raises `ValueError` where the format cannot say the network."""
        published.refuse_mixture(weights, f"the format {self.name}", published_allowed=False)
        if weights.architecture != ARCHITECTURE:
            raise ValueError(f"to={self.name} takes a decoder, got {weights.architecture}: write it as di4c or mdlm")
        weights.check(f"saving to {folder}")
        if weights.model.shift != self.shift:
            raise ValueError(f"to={self.name} has shift={self.shift}, got a network of shift={weights.model.shift}")
        kept = published.original(weights, self.name)
        tensors = dict(weights.tensors)
        if kept.get(_KEPT_HEAD):
            tensors[_HEAD] = tensors[_EMBEDDING].clone()
        config = dict(kept.get("config") or self._config(weights))
        for name in ("mask_id", "length"):  # which the source may have left to others
            if config.get(self.keys[name]) is None:
                config[self.keys[name]] = weights.sizes[name]
        named = {self.to_theirs(name): tensor for name, tensor in tensors.items()}
        write_checkpoint(folder, named, published.with_extra(config, weights, self.name))

    def _config(self, weights: Weights) -> dict[str, Any]:
        """The config of a network that was not read from this format."""
        architecture, model_type = self.written_as(weights.model)
        says = {**vars(weights.model), **weights.sizes, "rows": weights.sizes["num_rows"]}
        fixed = {key: allowed[0] for key, allowed in self.fixed.items()}
        known = {key: says[name] for name, key in self.keys.items()}
        return {"architectures": [architecture], "model_type": model_type, **fixed, **known}

    def _stated(self, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """What the config says of the network. Raises `ValueError` for what is not built here, and for values of a wrong type."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        flat = {**config, **({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or flat.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0)) != 1.0:
            raise ValueError(f"{path}: rope must be that of all channels, unscaled (rope_type=default), got {rope}")
        for key, allowed in self.fixed.items():
            if (found := config.get(key)) is not None and found not in allowed:
                raise ValueError(f"{path}: {key} must be {' or '.join(map(repr, allowed))}, got {found!r}")
        if sliding := [kind for kind in config.get("layer_types") or [] if kind != "full_attention"]:
            raise ValueError(f"{path}: layer_types must be full_attention, got {sliding[0]!r}")
        says = dict(self.defaults)
        for name, key in self.keys.items():
            if (value := flat.get(key)) is None:
                continue
            wanted = _TYPES.get(name, (int,))
            if type(value) not in wanted:
                raise ValueError(f"{path}: {key}={value!r}, expected {wanted[0].__name__}")
            says[name] = value
        return says

    def _shape(
        self, tensors: Mapping[str, Tensor], says: Mapping[str, Any], hints: Hints, folder: Path
    ) -> tuple[DecoderConfig, int]:
        """The settings that the tensors have, and the rows of their vocabulary. Raises `ValueError` where the config says others."""
        first = [f"layers.0.{name}" for name in _OF_FIRST_BLOCK]
        if absent := [self.to_theirs(name) for name in (_EMBEDDING, *first) if name not in tensors]:
            found = ", ".join(sorted(map(self.to_theirs, tensors))[:6]) or "no tensor at all"
            raise ValueError(f"{folder}: not a checkpoint of the format {self.name}: missing {absent}; found: {found}")
        if flat := [self.to_theirs(name) for name in (_EMBEDDING, *first) if tensors[name].dim() != 2]:
            raise ValueError(f"{folder}: misshapen: {flat} must have two axes")
        (rows, width), (outer, _), (inner, _), (mlp_size, _) = (tensors[name].shape for name in (_EMBEDDING, *first))
        heads = says.get("num_heads", hints.num_heads)
        if heads is None:
            raise ValueError(f"{folder}: neither tensors nor config say how many heads there are: give num_heads=")
        heads_kv, dim = says.get("num_kv_heads", heads), says.get("head_dim", width // max(heads, 1))
        blocks = {int(found[1]) for name in tensors if (found := re.match(r"layers\.(\d+)\.", name))}
        has_head = _HEAD in tensors
        tied = says.get("tied", not has_head)
        if tied and has_head:
            tied = torch.equal(tensors[_HEAD], tensors[_EMBEDDING])
        wrong = [
            f"{self.keys[name]}={says[name]} (the tensors: {found})"
            for name, found in (
                ("hidden_size", width),
                ("mlp_size", mlp_size),
                ("rows", rows),
                ("num_blocks", len(blocks)),
                ("qkv_bias", "layers.0.self_attn.q_proj.bias" in tensors),
            )
            if says.get(name, found) != found
        ]
        for said, found, what in ((heads, outer, "queries"), (heads_kv, inner, "keys")):
            if said * dim != found:
                wrong.append(f"{said} heads of {dim} channels for {what} (the tensors: {found} channels)")
        if says.get("tied") and not tied:
            wrong.append(f"{self.keys['tied']}=True (the tensors: an output head of its own)")
        if wrong:
            raise ValueError(f"{folder}: the config contradicts the tensors: {', '.join(wrong)}")
        self._check_frequencies(tensors, says["rope_theta"], dim, folder)
        try:
            model = DecoderConfig(
                hidden_size=width,
                num_blocks=len(blocks),
                num_heads=heads,
                num_kv_heads=heads_kv,
                head_dim=dim,
                mlp_size=mlp_size,
                rope_theta=float(says["rope_theta"]),
                norm_eps=float(says["norm_eps"]),
                qkv_bias="layers.0.self_attn.q_proj.bias" in tensors,
                qk_norm="layers.0.self_attn.q_norm.weight" in tensors,
                tied=tied,
                shift=self.shift if hints.shift is None else hints.shift,
            )
        except ValueError as error:
            raise ValueError(f"{folder}: the settings of the network are impossible: {error}") from error
        return model, rows

    def _check_frequencies(self, tensors: Mapping[str, Tensor], theta: float, dim: int, folder: Path) -> None:
        """Older files hold the rotary frequencies. Raises `ValueError` where they are not those that the config says."""
        expected = frequencies(dim, float(theta))
        for name, tensor in tensors.items():
            if not _INV_FREQ.fullmatch(name):
                continue
            if tensor.shape != expected.shape or not torch.allclose(tensor.float(), expected, rtol=1e-2):
                raise ValueError(
                    f"{folder}: the config contradicts the tensors: rope_theta={theta} and {dim} channels a head "
                    f"do not give {self.to_theirs(name)}"
                )


_TYPES: dict[str, tuple[type, ...]] = {
    "rope_theta": (float, int),
    "norm_eps": (float, int),
    "tied": (bool,),
    "qkv_bias": (bool,),
}


def architectures_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names under `architectures`; none where there is no list of them."""
    found = config.get("architectures")
    return tuple(str(name) for name in found) if isinstance(found, list) else ()


def mask_of(folder: Path, stated: int | None, given: int | None) -> int:
    """The id of MASK: of the config, or as given, or of the tokenizer beside it. Raises `ValueError` for none, and for two."""
    if stated is not None and given is not None and stated != given:
        raise ValueError(f"{folder / CONFIG_FILE}: mask_token_id={stated}, but mask_id={given} was given")
    found = next((one for one in (stated, given) if one is not None), None)
    found = tokenizer_mask(folder) if found is None else found
    if found is None:
        raise ValueError(f"{folder}: neither {CONFIG_FILE} nor a tokenizer beside it has a mask token: give mask_id=")
    return found


def tokenizer_mask(folder: Path) -> int | None:
    """The id of the mask token that the tokenizer's files in a folder name, if they do; no code and no tokenizer is loaded."""
    files = (folder / "tokenizer_config.json", folder / "tokenizer.json")
    settings, entries = (read_json(path) if path.is_file() else {} for path in files)
    mask: Any = settings.get("mask_token")
    mask = mask.get("content") if isinstance(mask, dict) else mask
    if mask is None:
        return None
    added = {one["content"]: one["id"] for one in entries.get("added_tokens", ())}
    added |= {one["content"]: int(number) for number, one in settings.get("added_tokens_decoder", {}).items()}
    vocabulary = entries.get("model", {}).get("vocab", {})
    return added.get(mask, vocabulary.get(mask) if isinstance(vocabulary, dict) else None)


def refuse_unknown(path: Path, *formats: Format) -> None:
    """Raise `ValueError` for a config of `architectures` that none of the formats has, naming those that are read."""
    names = architectures_of(read_json(path))
    if names and not _DITS & set(names):
        known = ", ".join((*sorted(_DITS), *(name for one in formats for name in one.architectures)))
        raise ValueError(f"{path}: architectures must be one of {known}, got {', '.join(names)}")


def _check_mask(mask_id: int, num_rows: int, path: Path) -> None:
    if not 0 <= mask_id < num_rows:
        raise ValueError(f"{path}: mask_token_id must be one of the {num_rows} rows of the vocabulary, got {mask_id}")


def without_model(name: str) -> str:
    """Llama's name without the `model.` before all but the output head."""
    return name.removeprefix("model.")


def with_model(name: str) -> str:
    """The inverse of `without_model`."""
    return name if name == _HEAD else f"model.{name}"

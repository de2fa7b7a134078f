"""What the published formats share: names under `backbone.`, a config that says some settings, shapes that tell the rest."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.mixtures.base import NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.base import Rotary
from di4c_lm.networks.dit import DitConfig

logger = logging.getLogger(__name__)

ARCHITECTURE = "di4c_lm.DIT"
EXTRA_KEY = "di4c_lm"  # under which other formats' configs carry what only ours knows
PREFIX = "backbone."
_WRAPPERS = re.compile(r"^(?:(?:_orig_mod|backbone|module|model)\.)+")  # of torch.compile, MDLM, DDP and trainers
# Beside the network: constants of noise schedules and of BD3-LM's range of times, which are no part of the weights.
_BESIDES = re.compile(r"noise\.(eps|sigma_min|sigma_max|sigmas)|sampling_eps_(min|max)")
_EMBEDDING, _TIME = "vocab_embed.embedding", "sigma_map.mlp.2.weight"
_ANCHORS = (_EMBEDDING, "blocks.0.norm1.weight", "output_layer.linear.weight")
# Of what a format of MDLM's tensor names may differ in: what the settings of a network of MDLM's say.
PLAIN: dict[str, Any] = {"process": "masked", "modulation": True, "norm_bias": False, "output": "logits"}
_REASONS = {
    "process": "noise is another, and with it what the output means",
    "modulation": "norms are modulated by the noise level in one and not in the other",
    "norm_bias": "norms have biases in one and not in the other",
    "output": "the scale of concrete scores has no place among logits of x_0, and cannot be made of them",
    "time_conditioning": "the noise level is an input of one and not of the other",
}
_INV_FREQ = "rotary_emb.inv_freq"
_OF_MODEL = {
    "num_blocks": "n_blocks",
    "num_heads": "n_heads",
    **{name: name for name in ("hidden_size", "cond_dim", "length", "dropout")},
}
_UNIFORM = {"process": "uniform", "time_conditioning": True}
_ALGORITHMS: dict[
    str, tuple[str, dict[str, Any]]
] = {  # of training configs: the parameterization and the kind of network
    "mdlm": ("subs", {}),
    "bd3lm": ("subs", {}),
    "duo": ("mean", _UNIFORM),
    "duo_base": ("mean", _UNIFORM),
    "distillation": ("mean", _UNIFORM),  # Duo's discrete consistency distillation
}
_TYPES: dict[str, tuple[type, ...]] = {"dropout": (float, int)} | dict.fromkeys(
    ("time_conditioning", "is_di4c", "modulation"), (bool,)
)
_PUBLISHED_HEADS = {768: 12}  # MDLM and SDTT, small; the others differ among themselves (1024: 16, 1536: 16)


def stated(values: Mapping[str, Any], names: Mapping[str, str], source: object) -> dict[str, Any]:
    """What `values` say of the network: the settings that `names` maps to keys of it.

    Raises `ValueError` for a value of the wrong type. Interpolations (`${...}`) and null count as not stated.
    """
    says: dict[str, Any] = {}
    for name, key in names.items():
        value = values.get(key)
        if value is None or (isinstance(value, str) and value.startswith("${")):
            continue
        wanted = _TYPES.get(name, (int,))
        if type(value) not in wanted:
            raise ValueError(f"{source}: {key}={value!r}, expected {wanted[0].__name__}")
        says[name] = float(value) if name == "dropout" else value
    return says


def stated_by_training_config(config: Mapping[str, Any], source: object) -> dict[str, Any]:
    """The settings in a training config of MDLM, SDTT or Di4C (`model.n_heads` and so on).

    Of a config that names its algorithm (Duo's repository) that says the noise, and what the output is. Raises `ValueError` for one of
    another family, whose tensors would fit and mean something else.
    """
    algorithm = config.get("algo")
    algorithm = algorithm if isinstance(algorithm, Mapping) else {}
    name = algorithm.get("name", "mdlm")
    if name not in _ALGORITHMS:
        raise ValueError(f"{source}: algo.name={name!r}, expected one of {', '.join(_ALGORITHMS)}")
    parameterization, kind = _ALGORITHMS[name]
    for key, expected in (("backbone", "dit"), ("parameterization", parameterization), ("causal_attention", False)):
        for found in (config.get(key), algorithm.get(key)):
            if isinstance(found, str | bool) and found != expected:
                raise ValueError(f"{source}: {key}={found!r}, expected {expected!r}")
    model = config.get("model")
    if not isinstance(model, Mapping):
        raise ValueError(f"{source}: expected the settings of the network under 'model', found {sorted(config)}")
    block, length = config.get("block_size"), model.get("length")
    if name == "bd3lm" and block != length:
        raise ValueError(
            f"{source}: block_size must be model.length={length}, the whole sequence, got {block!r}: "
            "attention block by block is not built here"
        )
    of_run = {name: name for name in ("time_conditioning", "is_di4c")}
    return {**stated(model, _OF_MODEL, source), **stated({**config, **algorithm}, of_run, source), **kind}


def named_settings(weights: Weights, names: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `stated`: the network's settings under the keys that `names` maps them to."""
    says = {**vars(weights.model), **weights.sizes}
    return {key: says[name] for name, key in names.items()}


def unwrap(tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Names as `DIT` has them: without the prefixes of what the network was wrapped in; the schedule's constants left out.

    Raises `ValueError` where two names become one.
    """
    bare: dict[str, Tensor] = {}
    left_out = []
    for name, tensor in tensors.items():
        short = _WRAPPERS.sub("", name).replace("._orig_mod.", ".")
        if _BESIDES.fullmatch(short):
            left_out.append(name)
            continue
        if short in bare:
            raise ValueError(f"{source}: two tensors for {short}, one of them {name}")
        bare[short] = tensor
    if left_out:
        logger.info("%s: no part of the network and left out: %s", source, ", ".join(left_out))
    return bare


def assemble(
    bare: Mapping[str, Tensor],
    says: Mapping[str, Any],
    source: object,
    hints: Hints,
    extra: dict[str, Any] | None = None,
) -> Weights:
    """Settings from shapes, completed by what the config `says`, then checked strictly.

    The heads and the length of `hints` are used where the file does not say; of what `PLAIN` lists, the config's reader has to say what is
    not as with MDLM.

    Raises:
        ValueError: not a DiT; a config that contradicts the shapes; heads or length stated nowhere; tensors missing, unknown
            or misshapen, all of them listed.
    """
    kind = {name: says.get(name, plain) for name, plain in PLAIN.items()}
    anchors = (*_ANCHORS, _TIME) if kind["modulation"] else _ANCHORS
    if absent := [name for name in anchors if name not in bare]:
        found = ", ".join(sorted(bare)) or "no tensor at all"
        raise ValueError(f"{source}: not the network of MDLM, SDTT or Di4C: missing {absent}; found: {found}")
    if flat := [name for name in anchors if name in (_EMBEDDING, _TIME) and bare[name].dim() != 2]:
        raise ValueError(f"{source}: misshapen: {flat} must have two axes")
    num_states, hidden_size = bare[_EMBEDDING].shape
    blocks = {int(found[1]) for name in bare if (found := re.match(r"blocks\.(\d+)\.", name))}
    shape = {
        "hidden_size": hidden_size,
        "num_blocks": says.get("num_blocks", max(blocks) + 1),
        "num_heads": _heads(bare, hidden_size, says.get("num_heads", hints.num_heads), source),
        "cond_dim": bare[_TIME].shape[0] if kind["modulation"] else says.get("cond_dim", DitConfig().cond_dim),
    }
    inferred = {**shape, "num_states": num_states}
    wrong = [f"{name}={says[name]} (the tensors: {v})" for name, v in inferred.items() if says.get(name, v) != v]
    if wrong:
        raise ValueError(f"{source}: the config contradicts the tensors: {', '.join(wrong)}")
    length = says.get("length", hints.length)
    if length is None:
        raise ValueError(f"{source}: the file does not say for how many positions it was trained: give length=")
    rest = {name: says[name] for name in ("dropout", "time_conditioning") if name in says}
    try:
        model = DitConfig(**{"dropout": 0.0, "time_conditioning": False, **kind, **shape, **rest})
    except ValueError as error:
        raise ValueError(f"{source}: the settings of the network are impossible: {error}") from error
    mixture = says.get("is_di4c") or any(name.startswith("latent_projection.") for name in bare)
    tensors = dict(bare)
    tensors.setdefault(_INV_FREQ, Rotary(model.hidden_size // model.num_heads).inv_freq)
    weights = Weights(
        tensors=tensors,
        architecture=ARCHITECTURE,
        model=model,
        sizes={"num_states": num_states, "length": length},
        mixture=TokenSettings() if mixture else NoMixture(),
        extra=extra or {},
    )
    weights.check(source)
    return weights


def training_config(weights: Weights, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stated_by_training_config`: what describes the network, written into the config `kept` from the source."""
    config = {
        **kept,
        "model": {**kept.get("model", {}), **named_settings(weights, _OF_MODEL)},
        "time_conditioning": weights.model.time_conditioning,
    }
    if weights.model.process == "uniform":
        config["algo"] = {"name": "duo", "backbone": "dit", "parameterization": "mean", **config.get("algo", {})}
    is_mixture = not isinstance(weights.mixture, NoMixture)
    if is_mixture or "is_di4c" in kept:
        config["is_di4c"] = is_mixture
    return config


def has_graph(config: Mapping[str, Any]) -> bool | None:
    """Of a config as SEDD and RADD have it, with a number of tokens and a model of blocks: whether it has a graph; None of any other."""
    model = config.get("model")
    if "tokens" not in config or not isinstance(model, dict) or "n_blocks" not in model:
        return None
    return "graph" in config


def stated_with_tokens(config: Mapping[str, Any], source: object) -> dict[str, Any]:
    """The settings in a config of SEDD or RADD, which says how many tokens there are beside MASK. Raises `ValueError` as `stated` does."""
    says = {**stated(config["model"], _OF_MODEL, source), **stated(config, {"num_states": "tokens"}, source)}
    return {**says, "num_states": says["num_states"] + 1} if "num_states" in says else says


def config_with_tokens(weights: Weights, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stated_with_tokens`, written into the config `kept` from the source."""
    model = {**kept["model"], **named_settings(weights, _OF_MODEL)}
    return {**kept, "model": model, "tokens": weights.sizes["num_states"] - 1}


def read_extra(config: dict[str, Any], origin: str, **more: Any) -> dict[str, Any]:
    """What our writer left in a config, or else the config itself, so that it can be written back as it was."""
    if isinstance(config.get(EXTRA_KEY), dict):
        return config[EXTRA_KEY]
    return {"origin": {"format": origin, "config": config, **more}}


def original(weights: Weights, origin: str) -> dict[str, Any]:
    """What `read_extra` kept of a checkpoint of format `origin`: `config` and more; empty where it comes from elsewhere."""
    kept = weights.extra.get("origin")
    return kept if isinstance(kept, dict) and kept.get("format") == origin else {}


def with_extra(config: dict[str, Any], weights: Weights, origin: str) -> dict[str, Any]:
    """`config` with what it cannot say by itself under a key of ours, for `read_extra`."""
    unsaid = set(weights.extra) - ({"origin"} if original(weights, origin) else set())
    return {**config, EXTRA_KEY: weights.extra} if unsaid else config


def refuse_mixture(weights: Weights, target: str, *, published_allowed: bool) -> None:
    """Raise `ValueError` where format `target` has no place for λ, or only for λ as published."""
    if isinstance(weights.mixture, NoMixture):
        return
    if not published_allowed:
        raise ValueError(f"{target} has no place for λ: this is a mixture student, write it as di4c or sdtt")
    said = weights.mixture
    if type(said) is not TokenSettings or (said.distribution, said.inject_at) != ("uniform", 0):
        raise ValueError(
            f"{target} must have mixture=token, distribution=uniform, inject_at=0, got {said}: write it as di4c"
        )


def refuse_others(weights: Weights, target: str, **kind: Any) -> None:
    """Raise `ValueError` for a network that format `target` cannot say, naming what differs and why it matters.

    `kind` are settings of those that `target` writes: values, or of several that are allowed a tuple; what is absent is as in `PLAIN`.
    """
    if weights.architecture != ARCHITECTURE:
        raise ValueError(f"{target} takes a DiT, got {weights.architecture}")
    for name, wanted in {**PLAIN, **kind}.items():
        allowed, found = wanted if isinstance(wanted, tuple) else (wanted,), getattr(weights.model, name)
        if found not in allowed:
            said = " or ".join(map(str, allowed))
            raise ValueError(f"{target} must have {name}={said}, got {found}: {_REASONS[name]}; to=di4c keeps it")


def _heads(bare: Mapping[str, Tensor], hidden_size: int, says: int | None, source: object) -> int:
    if _INV_FREQ in bare:
        half = bare[_INV_FREQ].numel()
        if half == 0 or hidden_size % (2 * half):
            raise ValueError(f"{source}: misshapen: {_INV_FREQ} has {half} entries, the width is {hidden_size}")
        return hidden_size // (2 * half)
    heads = says if says is not None else _PUBLISHED_HEADS.get(hidden_size)
    if heads is None:
        raise ValueError(f"{source}: neither tensors nor config say how many heads there are: give num_heads=")
    return heads

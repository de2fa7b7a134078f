"""What the published formats share: names under `backbone.`, a config that says some settings, shapes that tell the rest."""

import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.mixtures.base import MixtureSettings, NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.base import Rotary
from di4c_lm.networks.dit import DitConfig

logger = logging.getLogger(__name__)

ARCHITECTURE = "di4c_lm.DIT"
EXTRA_KEY = "di4c_lm"  # under which other formats' configs carry what only ours knows
PREFIX = "backbone."
_WRAPPERS = re.compile(r"^(?:(?:_orig_mod|backbone)\.)+")
# Beside the network: constants of the noise schedule, which are no part of the weights.
_BESIDES = re.compile(r"noise\.(eps|sigma_min|sigma_max|sigmas)")
_ANCHORS = (
    "vocab_embed.embedding",
    "sigma_map.mlp.2.weight",
    "blocks.0.norm1.weight",
    "output_layer.linear.weight",
)
_INV_FREQ = "rotary_emb.inv_freq"
_PUBLISHED_HEADS = {768: 12}  # MDLM and SDTT, small; the others differ among themselves (1024: 16, 1536: 16)


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a config says of its network; None where it says nothing."""

    hidden_size: int | None = None
    num_blocks: int | None = None
    num_heads: int | None = None
    cond_dim: int | None = None
    num_states: int | None = None
    length: int | None = None
    dropout: float | None = None
    time_conditioning: bool | None = None
    is_di4c: bool | None = None


def stated(values: Mapping[str, Any], names: Mapping[str, str], source: object) -> Stated:
    """Pick the fields of `Stated` from `values`, under the keys that `names` maps them to.

    Raises `ValueError` for a value of the wrong type. Interpolations (`${...}`) and null count as not stated.
    """
    picked: dict[str, Any] = {}
    for field, key in names.items():
        value = values.get(key)
        if value is None or (isinstance(value, str) and value.startswith("${")):
            continue
        wanted = {"dropout": (float, int), "time_conditioning": (bool,), "is_di4c": (bool,)}.get(field, (int,))
        if type(value) not in wanted:
            raise ValueError(f"{source}: {key}={value!r}, expected {wanted[0].__name__}")
        picked[field] = float(value) if field == "dropout" else value
    return Stated(**picked)


def stated_by_training_config(config: Mapping[str, Any], source: object) -> Stated:
    """The settings in a training config of MDLM, SDTT or Di4C (`model.n_heads` and so on).

    Raises `ValueError` for one of another family, whose tensors would fit and mean something else.
    """
    backbone, parameterization = config.get("backbone"), config.get("parameterization")
    if isinstance(backbone, str) and backbone != "dit":
        raise ValueError(f"{source}: backbone={backbone!r}, expected 'dit'")
    if isinstance(parameterization, str) and parameterization != "subs":
        raise ValueError(f"{source}: parameterization={parameterization!r}, expected 'subs'")
    model = config.get("model")
    if not isinstance(model, Mapping):
        raise ValueError(f"{source}: expected the settings of the network under 'model', found {sorted(config)}")
    of_model = {"num_blocks": "n_blocks", "num_heads": "n_heads"}
    of_model |= {name: name for name in ("hidden_size", "cond_dim", "length", "dropout")}
    of_run = {"time_conditioning": "time_conditioning", "is_di4c": "is_di4c"}
    from_run = stated(config, of_run, source)
    return dataclasses.replace(
        stated(model, of_model, source), time_conditioning=from_run.time_conditioning, is_di4c=from_run.is_di4c
    )


def unwrap(tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Names as `DIT` has them: without `backbone.` (once or twice) and `_orig_mod.`; the schedule's constants left out.

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
    says: Stated,
    source: object,
    hints: Hints,
    extra: dict[str, Any] | None = None,
) -> Weights:
    """Settings from shapes, completed by what the config `says`, then checked strictly.

    The heads and the length of `hints` are used where the file does not say.

    Raises:
        ValueError: not a DiT; a config that contradicts the shapes; heads or length stated nowhere; tensors missing, unknown
            or misshapen, all of them listed.
    """
    if absent := [name for name in _ANCHORS if name not in bare]:
        found = ", ".join(sorted(bare)) or "no tensor at all"
        raise ValueError(f"{source}: not the network of MDLM, SDTT or Di4C: missing {absent}; found: {found}")
    if flat := [name for name in _ANCHORS[:2] if bare[name].dim() != 2]:
        raise ValueError(f"{source}: misshapen: {flat} must have two axes")
    num_states, hidden_size = bare["vocab_embed.embedding"].shape
    blocks = {int(found[1]) for name in bare if (found := re.match(r"blocks\.(\d+)\.", name))}
    inferred = Stated(
        hidden_size=hidden_size,
        num_states=num_states,
        cond_dim=bare["sigma_map.mlp.2.weight"].shape[0],
        num_blocks=says.num_blocks if says.num_blocks is not None else max(blocks) + 1,
        num_heads=_heads(bare, hidden_size, says.num_heads if says.num_heads is not None else hints.num_heads, source),
    )
    _refuse_contradictions(says, inferred, source)
    if says.length is None and hints.length is None:
        raise ValueError(f"{source}: the file does not say for how many positions it was trained: give length=")
    try:
        model = DitConfig(
            hidden_size=hidden_size,
            num_blocks=_known(inferred.num_blocks),
            num_heads=_known(inferred.num_heads),
            cond_dim=_known(inferred.cond_dim),
            dropout=says.dropout or 0.0,
            time_conditioning=bool(says.time_conditioning),
        )
    except ValueError as error:
        raise ValueError(f"{source}: the settings of the network are impossible: {error}") from error
    mixture = bool(says.is_di4c) or any(name.startswith("latent_projection.") for name in bare)
    tensors = dict(bare)
    tensors.setdefault(_INV_FREQ, Rotary(model.hidden_size // model.num_heads).inv_freq)
    weights = Weights(
        tensors=tensors,
        architecture=ARCHITECTURE,
        model=model,
        sizes={"num_states": num_states, "length": _known(says.length if says.length is not None else hints.length)},
        mixture=TokenSettings() if mixture else NoMixture(),
        extra=extra or {},
    )
    weights.check(source)
    return weights


def training_config(weights: Weights, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stated_by_training_config`: what describes the network, written into the config `kept` from the source."""
    network = {
        "hidden_size": weights.model.hidden_size,
        "cond_dim": weights.model.cond_dim,
        "length": weights.sizes["length"],
        "n_blocks": weights.model.num_blocks,
        "n_heads": weights.model.num_heads,
        "dropout": weights.model.dropout,
    }
    config = {
        **kept,
        "model": {**kept.get("model", {}), **network},
        "time_conditioning": weights.model.time_conditioning,
    }
    is_mixture = not isinstance(weights.mixture, NoMixture)
    if is_mixture or "is_di4c" in kept:
        config["is_di4c"] = is_mixture
    return config


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
    if not is_published(weights.mixture):
        raise ValueError(
            f"{target} must have mixture=token, distribution=uniform, inject_at=0, got {weights.mixture}: write it as di4c"
        )


def is_published(mixture: MixtureSettings) -> bool:
    """Whether λ is that of the published students."""
    return type(mixture) is TokenSettings and mixture.distribution == "uniform" and mixture.inject_at == 0


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


def _refuse_contradictions(says: Stated, inferred: Stated, source: object) -> None:
    found = dataclasses.asdict(inferred)
    wrong = [
        f"{name}={value} (the tensors: {found[name]})"
        for name, value in dataclasses.asdict(says).items()
        if value is not None and found[name] is not None and value != found[name]
    ]
    if wrong:
        raise ValueError(f"{source}: the config contradicts the tensors: {', '.join(wrong)}")


def _known(value: int | None) -> int:
    assert value is not None
    return value

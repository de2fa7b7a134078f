"""The language model whose perplexity is reported: trained here and cached, or loaded from a folder or the hub."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from di4c_lm.core.cache import Cache, key_of
from di4c_lm.core.files import write_json
from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.core.retry import foreign_reason, is_local, look_for_hub
from di4c_lm.core.settings import positive, section, setting, to_dict, unit
from di4c_lm.core.terminal import progress_bar
from di4c_lm.measure.render.manifest import weights_hash
from di4c_lm.measure.text.perplexity import context_limit, same_vocabulary
from di4c_lm.measure.text.presets import PRESETS, preset_folder
from di4c_lm.training.muon import LocalMuon
from di4c_lm.training.settings import PretrainConfig, RunConfig

_FORMAT = 3  # of the cache's key: a change in how evaluators are trained raises it
_WEIGHT_DECAY = 0.1
_EXPECTED = f"a folder with config.json, weights and a tokenizer, as save_pretrained writes it, a hub name, or {', '.join(PRESETS)}"
_log = logging.getLogger(__name__)


@section
class EvaluatorConfig:
    """The language model whose perplexity is reported."""

    PATH_KIND: ClassVar[str] = ""

    path: str = setting(
        "train",
        "the evaluator; train: a small GPT-2 trained on the run's corpus; smollm2: SmolLM2-135M; else a folder or hub name",
    )
    download: bool = setting(False, "fetch the evaluator smollm2 (93 MB, Apache-2.0) into the cache where it is absent")
    hidden_size: int = setting(192, "width of an evaluator trained here")
    num_blocks: int = setting(4, "layers of an evaluator trained here")
    num_heads: int = setting(4, "attention heads of an evaluator trained here")
    dropout: float = setting(0.1, "dropout of an evaluator while it is trained here")
    batch_size: int = setting(32, "documents in a batch that the evaluator reads")
    pretrain: PretrainConfig = setting(PretrainConfig())

    def __post_init__(self) -> None:
        positive(self, "hidden_size", "num_blocks", "num_heads", "batch_size")
        unit(self, "dropout")

    def unused(self) -> dict[str, str]:
        """Shape and training of an evaluator that is given."""
        names = [] if self.path == "train" else ["hidden_size", "num_blocks", "num_heads", "dropout", "pretrain"]
        names += [] if self.path in PRESETS else ["download"]
        return dict.fromkeys(names, f"where evaluator.path={self.path}")


@final
@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A causal LM of transformers in eval mode with its tokenizer. `name`: preset, folder or hub name it came from."""

    model: nn.Module
    tokenizer: Any
    name: str
    folder: Path | None = None  # that holds its weights

    @cached_property
    def weights(self) -> str | None:
        """SHA-256 of its weights, where they lie in a folder."""
        return None if self.folder is None else weights_hash(self.folder)


def train_evaluator(
    tokens_ND: Int[Tensor, "N D"],
    tokenizer: Any,
    config: EvaluatorConfig,
    *,
    cache_dir: Path,
    progress: bool = True,
    device: str = "cpu",
) -> Evaluator:
    """A small GPT-2 trained on next tokens of `tokens_ND`, or the one that the cache holds for the same arguments.

    Seeded by `config.pretrain.seed`; the global generators are left as they were. Raises `ValueError` for an empty corpus, sequences of
    one token, and ids beyond the tokenizer.
    """
    num_sequences, length = tokens_ND.shape
    if num_sequences == 0 or length < 2:
        raise ValueError(
            f"an evaluator needs sequences of at least 2 tokens to train on, got shape {tuple(tokens_ND.shape)}"
        )
    if int(tokens_ND.max()) >= len(tokenizer):
        raise ValueError(f"token id {int(tokens_ND.max())} is beyond the tokenizer's {len(tokenizer)} entries")

    def make(folder: Path) -> None:
        _log.info("training an evaluator on %d sequences of %d tokens: %s", num_sequences, length, path)
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
            torch.manual_seed(config.pretrain.seed)
            model, loss = _train(tokens_ND, tokenizer, config, progress=progress, device=device)
        with _no_bars():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "evaluator.json", {"config": to_dict(config), "final_train_loss": loss})

    cache, key = Cache(cache_dir), cache_key(tokens_ND, tokenizer, config)
    path = cache.path("evaluators", key)
    _log.info("evaluator: %s", path)
    return load_evaluator(str(cache.entry("evaluators", key, make)), device=device)


def cache_key(tokens_ND: Int[Tensor, "N D"], tokenizer: Any, config: EvaluatorConfig) -> str:
    """Stands for all that shapes a trained evaluator. `path`, `download` and `batch_size` (of reading) do not."""
    settings = {key: value for key, value in to_dict(config).items() if key not in ("path", "batch_size", "download")}
    data = hashlib.sha256(tokens_ND.to("cpu", torch.int64).contiguous().numpy().tobytes()).hexdigest()
    return key_of(_FORMAT, _WEIGHT_DECAY, settings, list(tokens_ND.shape), data, fingerprint(tokenizer))


def _train(
    tokens_ND: Int[Tensor, "N D"], tokenizer: Any, config: EvaluatorConfig, *, progress: bool, device: str
) -> tuple[Any, float]:
    from transformers import GPT2Config, GPT2LMHeadModel

    pretrain = config.pretrain
    model: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=tokens_ND.shape[1],
            n_embd=config.hidden_size,
            n_layer=config.num_blocks,
            n_head=config.num_heads,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.to(device).train()
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2] if pretrain.optim == "muon" else []
    own = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in own]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=pretrain.lr, betas=(0.9, 0.95), weight_decay=_WEIGHT_DECAY)
    ]
    if matrices:
        optimizers.append(LocalMuon(matrices, lr=pretrain.muon_lr, weight_decay=_WEIGHT_DECAY))
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=optimizer.defaults["lr"],
            total_steps=pretrain.steps + 1,
            pct_start=0.05,
            cycle_momentum=False,
        )
        for optimizer in optimizers
    ]
    rng = torch.Generator().manual_seed(pretrain.seed)
    epochs = -(-pretrain.steps * pretrain.batch_size // len(tokens_ND))
    order = torch.cat([torch.randperm(len(tokens_ND), generator=rng) for _ in range(epochs)])
    batches = order.split(pretrain.batch_size)[: pretrain.steps]
    bar = progress_bar(batches, desc="evaluator", unit="step", disable=not progress)
    smoothed = 0.0
    for step, index_B in enumerate(bar):
        ids_ND = tokens_ND[index_B].to(device, torch.long)
        logits_NDV = model(input_ids=ids_ND, use_cache=False).logits
        loss = F.cross_entropy(logits_NDV[:, :-1].flatten(0, 1), ids_ND[:, 1:].flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        weight = max(0.02, 1 / (step + 1))
        smoothed += weight * (loss.item() - smoothed)
        bar.set_postfix(loss=f"{smoothed:.3f}", refresh=False)
    return model, smoothed


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of transformers ("Loading weights", "Writing model shards"); then as it was."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def find_evaluator(path: str, *, download: bool = False, cache: Path | None = None) -> str:
    """The folder, or else the hub name, that `path` is; a preset is looked for in the cache (absent: the usual one), and fetched if it may.

    Raises `ValueError` for a folder that is absent or holds no model, and a preset that may not be fetched.
    """
    if path in PRESETS:
        return str(preset_folder(path, cache or RunConfig().cache, download=download))
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        found = sorted(p.name for p in folder.iterdir())[:8]
        raise ValueError(f"evaluator={path!r}: expected {_EXPECTED}; found no config.json among {found}")
    if not folder.is_dir() and is_local(path):
        raise ValueError(f"evaluator={path!r}: expected {_EXPECTED}; found no such folder")
    return str(folder) if folder.is_dir() else path


def check_evaluator(path: str, *, download: bool = False, cache: Path | None = None) -> None:
    """Raise `ValueError` where there is no evaluator by this path or name of the hub; its weights are not read."""
    from transformers import AutoConfig

    source = find_evaluator(path, download=download, cache=cache)
    if not Path(source).is_dir():
        look_for_hub()
    try:
        AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"evaluator={path!r}: expected {_EXPECTED}; found: {foreign_reason(error)}") from error


def load_evaluator(
    path: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    download: bool = False,
    cache: Path | None = None,
) -> Evaluator:
    """An evaluator by its preset's name, from a folder or a hub name; weights as tensors only, no remote code, nothing left at random.

    `dtype` None: as saved; `download` and `cache` as for `find_evaluator`. Raises `ValueError` that names `path` and what was expected: no
    such folder or name, a truncated or foreign file, weights missing or of another shape, a tokenizer of more entries than the model knows.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = find_evaluator(path, download=download, cache=cache)
    if not Path(source).is_dir():
        look_for_hub()
    try:
        with _no_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype or "auto", output_loading_info=True, trust_remote_code=False
            )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"evaluator={path!r}: expected {_EXPECTED}; found: {foreign_reason(error)}") from error
    model, info = loaded
    if broken := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(f"evaluator={path!r}: its weights are not finite: {', '.join(broken[:8])}")
    if info["missing_keys"]:
        raise ValueError(
            f"evaluator={path!r}: expected every weight, found none for {sorted(info['missing_keys'])[:8]}"
        )
    vocabulary = model.config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise ValueError(f"evaluator={path!r}: its tokenizer has {len(tokenizer)} entries, its model {vocabulary}")
    folder = Path(source) if Path(source).is_dir() else None
    return Evaluator(model=model.eval().to(device), tokenizer=tokenizer, name=path, folder=folder)


def evaluator_facts(evaluator: Evaluator, tokenizer: Any, reading: Any) -> dict[str, Any]:
    """What a manifest says of an evaluator: which weights, and how it reads what `tokenizer` writes."""
    return {
        "name": evaluator.name,
        "sha256": evaluator.weights,
        "parameters": sum(p.numel() for p in evaluator.model.parameters()),
        "context": context_limit(evaluator.model),
        "tokenizer": fingerprint(evaluator.tokenizer),
        "reads": "token ids"
        if reading.retokenize == "auto" and same_vocabulary(tokenizer, evaluator.tokenizer)
        else "text",
        "batch_size": reading.evaluator_batch_size,
        **{key: getattr(reading, key) for key in ("eos", "retokenize", "overflow")},
    }

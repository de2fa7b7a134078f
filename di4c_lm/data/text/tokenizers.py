"""Tokenizers: trained on the corpus, or loaded; always with EOS, BOS, and MASK, which is the last id unless a model has one of its own."""

import hashlib
import itertools
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from di4c_lm.core.cache import Cache
from di4c_lm.core.files import read_json, write_text
from di4c_lm.core.fingerprints import fingerprint as fingerprint
from di4c_lm.core.retry import foreign_reason, is_local, is_network_failure, look_for_hub, with_retries
from di4c_lm.data.text.documents import first_characters
from di4c_lm.data.text.settings import DataConfig

if TYPE_CHECKING:
    import tokenizers
    import transformers

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
_MASKS = ("[MASK]", "<|mask|>", "<|di4c_mask|>")
_READ_AS = {
    "DreamTokenizer": "qwen2"
}  # classes that come as code with a model, by the kind of transformers for its files
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # all in tokenizer.json, as we save them
_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # any of these
_TRAINING_CHARACTERS = 50_000_000  # of the corpus, enough for any vocabulary and bounded in memory
_OFFLINE_WAY = "data.tokenizer=train, or a folder that holds the tokenizer's files"
_RESTRICT_BATCH = 1000  # texts
_NEVER_TEXT, _UNIGRAM = (2, 3), 1  # of sentencepiece: types of pieces that no text has, and a kind of model
_LONGEST_WORD = 256  # characters, in the training of a tokenizer
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD}}}|\s{{{_LONGEST_WORD}}}")
_PROBED_TEXTS, _PROBED_CHARACTERS = 200, 10_000  # of which the share of unknown characters is taken
_PROBES = ("The assert statement, twice  spaced.", "a = b[3] + 10\n\tnext line", "naïve café")


def train_bpe(texts: Iterable[str], vocab_size: int) -> "tokenizers.Tokenizer":
    """A byte-level BPE like GPT-2's, `<|endoftext|>` among its `vocab_size` entries; the same for the same texts.

    The time is linear in the text, whatever it is like: see `bounded`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((piece for text in texts for piece in bounded(text)), trainer=trainer)
    return backend


def bounded(text: str) -> Iterator[str]:
    """`text`, cut wherever `_LONGEST_WORD` characters come without a change between space and no space.

    A trainer's merges take time quadratic in the longest word; text without spaces (Chinese, DNA, minified JSON) is one word.
    """
    start = 0
    for match in _LONG_WORD.finditer(text):
        yield text[start : match.end()]
        start = match.end()
    yield text[start:]


def lost_share(tokenizer: "transformers.PreTrainedTokenizerFast", texts: Iterable[str]) -> float:
    """Of the characters of `texts` that are no space, those that no token stands for, or an unknown one alone."""
    lost, total, unknown = 0, 0, _unknown(tokenizer)
    for text in texts:
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        said = np.zeros(len(text), dtype=bool)
        for number, (start, end) in zip(read["input_ids"], read["offset_mapping"], strict=True):  # pyright: ignore[reportArgumentType]
            said[start:end] |= number not in unknown
        solid = np.array([not character.isspace() for character in text], dtype=bool)
        lost, total = lost + int((solid & ~said).sum()), total + int(solid.sum())
    return lost / max(total, 1)


def _unknown(tokenizer: "transformers.PreTrainedTokenizerFast") -> set[Any]:
    """The ids that stand for what is not in the vocabulary, whether or not the tokenizer was told of them."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    word = model.get("unk_token")
    found: list[Any] = [
        tokenizer.unk_token_id,
        model.get("unk_id"),
        word and tokenizer.backend_tokenizer.token_to_id(word),
    ]
    return {*found}


def save_tokenizer(tokenizer: "transformers.PreTrainedTokenizerFast", folder: Path) -> None:
    """Write its files. Raises `OSError` that names the folder, also for a full disk."""
    try:
        tokenizer.save_pretrained(str(folder))
    except OSError:
        raise
    except Exception as error:  # the Rust side wraps the system's error in a bare one
        raise OSError(f"{folder}: the tokenizer could not be written: {error}") from error


def check_lost(tokenizer: "transformers.PreTrainedTokenizerFast", texts: Sequence[str], config: DataConfig) -> None:
    """Log the share of held-out text that the tokenizer cannot say. Raises `ValueError` where it is above `data.max_lost`."""
    some = [text[:_PROBED_CHARACTERS] for text in texts[:_PROBED_TEXTS]]
    share = lost_share(tokenizer, some)
    if share > config.max_lost:
        raise ValueError(
            f"data.tokenizer={config.tokenizer}: {share:.1%} of the characters are unknown to it, allowed are "
            f"{config.max_lost:.1%} (data.max_lost): take one made for this text, or data.tokenizer=train"
        )
    if share > 0:
        logger.warning("data.tokenizer=%s: %.2f %% of the characters are unknown to it", config.tokenizer, 100 * share)


def _trained(documents: Iterable[str], vocab_size: int, cache_dir: Path) -> "transformers.PreTrainedTokenizerFast":
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = list(first_characters(documents, _TRAINING_CHARACTERS))
    if not texts:
        raise ValueError("data.tokenizer=train: there is no document to train a tokenizer on")
    key = hashlib.sha256(f"{tokenizers.__version__} {vocab_size}".encode())
    for text in texts:
        key.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())

    def make(folder: Path) -> None:
        logger.info("training a byte-level BPE of %d entries on %d documents", vocab_size, len(texts))
        write_text(folder / "tokenizer.json", train_bpe(texts, vocab_size).to_str())

    path = Cache(cache_dir).entry("tokenizers", key.hexdigest()[:16], make) / "tokenizer.json"
    logger.info("tokenizer of %d entries: %s", vocab_size, path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)
    if len(tokenizer) < vocab_size:
        logger.warning("the corpus gave only %d of data.vocab_size=%d tokenizer entries", len(tokenizer), vocab_size)
    return tokenizer


def _from_sentencepiece(path: Path) -> "transformers.PreTrainedTokenizerFast":
    """Convert through `transformers`, set the normaliser that the model asks for, and compare with `sentencepiece`."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(path.read_bytes())
    spec = proto.normalizer_spec
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / "tokenizer.model")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend("▁")] if spec.add_dummy_prefix else []
    steps += [normalizers.Replace(" ", "▁")]
    backend: Any = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(steps)
    names = [piece.piece for piece in proto.pieces if piece.type in _NEVER_TEXT and len(piece.piece) > 1]
    if (
        names and proto.trainer_spec.model_type == _UNIGRAM
    ):  # it takes their names in a text for pieces, unless they come in two parts
        cut = Regex("|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names))
        kept = [backend.pre_tokenizer] if backend.pre_tokenizer is not None else []
        backend.pre_tokenizer = pre_tokenizers.Sequence([*kept, pre_tokenizers.Split(cut, "isolated")])
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for probe in _PROBES:
        found, expected = tokenizer(probe, add_special_tokens=False)["input_ids"], reference.Encode(probe)
        if found != expected:
            raise ValueError(
                f"data.tokenizer={path}: converted, {probe!r} becomes {found}, in sentencepiece itself {expected}"
            )
    return tokenizer


def _class_of(folder: Path) -> str:
    """The class that a folder's `tokenizer_config.json` names, if it does."""
    path = folder / "tokenizer_config.json"
    return str(read_json(path).get("tokenizer_class")) if path.is_file() else ""


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer: in one file, or as entries and merges."""
    return any(all((folder / name).is_file() for name in names) for names in _FILES)


def _loaded(name: str) -> "transformers.PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    path = Path(name).expanduser()
    if path.is_dir() and _class_of(path) in _PLAIN and (path / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(str(path), trust_remote_code=False)
    from transformers import AutoTokenizer  # a second's work, which a tokenizer of our own saves

    if path.is_file():
        if path.suffix not in (".json", ".model"):
            raise ValueError(f"data.tokenizer={name}: a file must be a `tokenizers` .json or a sentencepiece .model")
        return (
            PreTrainedTokenizerFast(tokenizer_file=str(path)) if path.suffix == ".json" else _from_sentencepiece(path)
        )
    if path.is_dir():
        inside = {file.name for file in path.iterdir()}
        if {"vocab.json", "merges.txt"} <= inside and not inside & {
            "tokenizer.json",
            "tokenizer_config.json",
            "config.json",
        }:
            return AutoTokenizer.from_pretrained(str(path), tokenizer_type="gpt2", trust_remote_code=False)
        if kind := _READ_AS.get(_class_of(path)):
            logger.warning(
                "data.tokenizer=%s: read as a tokenizer of %s, without the code that comes with it", name, kind
            )
            return AutoTokenizer.from_pretrained(str(path), tokenizer_type=kind, trust_remote_code=False)
        return AutoTokenizer.from_pretrained(str(path), use_fast=True, trust_remote_code=False)

    def from_hub() -> "transformers.PreTrainedTokenizerFast":
        return AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)

    look_for_hub()
    return with_retries(from_hub, f"data.tokenizer={name}", _OFFLINE_WAY)


def read_tokenizer(name: str, said: str) -> "transformers.PreTrainedTokenizerFast":
    """The tokenizer in a file, a folder or under a hub name, as it is; no code that comes with it is run.

    Raises `ValueError`, which begins with `said`, where there is none that is fast, `ConnectionError` where the hub does not answer.
    """
    from transformers import PreTrainedTokenizerFast

    if not Path(name).expanduser().exists() and is_local(name):
        raise ValueError(f"{said}: there is no file or folder {name}")
    try:
        tokenizer = _loaded(name)
    except ConnectionError:
        raise
    except Exception as error:  # `tokenizers` raises bare Exceptions for files that it cannot read
        if is_network_failure(error) or str(error).startswith("data.tokenizer"):
            raise
        raise ValueError(
            f"{said}: no tokenizer can be loaded from this file, folder or hub name: {foreign_reason(error)}"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{said}: a fast tokenizer is needed, found {type(tokenizer).__name__}")
    return tokenizer


def _load_or_explain(name: str) -> "transformers.PreTrainedTokenizerFast":
    said = f"data.tokenizer={name}"
    tokenizer = read_tokenizer(name, said)
    try:
        ids = tokenizer("a word", add_special_tokens=False)["input_ids"]
    except Exception as error:  # a bare one of `tokenizers`
        raise ValueError(f"{said}: the tokenizer fails at words that it does not know: {error}") from error
    if not ids:
        raise ValueError(f"{said}: the tokenizer is empty: {len(tokenizer)} entries, no token for 'a word'")
    return tokenizer


def with_mask(
    tokenizer: "transformers.PreTrainedTokenizerFast", mask_id: int, said: str
) -> "transformers.PreTrainedTokenizerFast":
    """The tokenizer, its entry `mask_id` its mask token; one behind the last is added.

    Raises `ValueError`, which begins with `said`, where that is no entry, and where the ids have holes: a row of a vocabulary without a
    token could be sampled.
    """
    if mask_id == len(tokenizer):
        tokenizer.add_special_tokens({"mask_token": next(mask for mask in _MASKS if mask not in tokenizer.get_vocab())})
    size, last = len(tokenizer), max(tokenizer.get_vocab().values())
    if last != size - 1:
        raise ValueError(f"{said}: the ids of this tokenizer have holes: {size} entries, the last is {last}")
    if not 0 <= mask_id < size:
        raise ValueError(f"{said}: the mask must be one of the tokenizer's {size} entries, got {mask_id}")
    if tokenizer.mask_token_id != mask_id:
        tokenizer.add_special_tokens({"mask_token": str(tokenizer.convert_ids_to_tokens(mask_id))})
    return tokenizer


def _with_specials(
    tokenizer: "transformers.PreTrainedTokenizerFast", mask_id: int | None = None
) -> "transformers.PreTrainedTokenizerFast":
    """Give it EOS and BOS (BERT's SEP and CLS serve; else `<|endoftext|>`), then MASK as the last id, or where `mask_id` says."""
    if tokenizer.eos_token_id is None:
        tokenizer.add_special_tokens({"eos_token": str(tokenizer.sep_token or END_OF_TEXT)})
    if tokenizer.bos_token_id is None:
        tokenizer.add_special_tokens({"bos_token": str(tokenizer.cls_token or tokenizer.eos_token)})
    if mask_id is not None:
        return with_mask(tokenizer, mask_id, "data.mask_id")
    if tokenizer.mask_token_id is None or tokenizer.mask_token_id != len(tokenizer) - 1:
        vocab = tokenizer.get_vocab()
        tokenizer.add_special_tokens({"mask_token": next(mask for mask in _MASKS if mask not in vocab)})
    if max(tokenizer.get_vocab().values()) != len(tokenizer) - 1 or tokenizer.mask_token_id != len(tokenizer) - 1:
        raise ValueError(
            f"data.tokenizer: the ids of this tokenizer have holes: {len(tokenizer)} entries, MASK is {tokenizer.mask_token_id}"
        )
    return tokenizer


def load_tokenizer(
    config: DataConfig, documents: Iterable[str], cache_dir: Path
) -> "transformers.PreTrainedTokenizerFast":
    """The tokenizer that `config.tokenizer` names, with EOS, BOS, and MASK as its last id or `config.mask_id`: S = len(tokenizer).

    "train" makes a byte-level BPE of `config.vocab_size` entries (EOS among them, MASK not) on the first 50 million
    characters of `documents`, the corpus' training side, and keeps it in `cache_dir`. Else a folder (`vocab.json` and
    `merges.txt` alone will do), a `tokenizers` .json file, a sentencepiece .model file, or a hub name; no code that
    comes with one is ever run.

    Raises:
        ValueError: nothing there, not readable, empty, or without a fast form.
        ConnectionError: the hub did not answer; the message names the offline way.
    """
    if config.tokenizer == "train":
        return _with_specials(_trained(documents, config.vocab_size, cache_dir))
    return _with_specials(_load_or_explain(config.tokenizer), config.mask_id)


def restrict(
    tokenizer: "transformers.PreTrainedTokenizerFast", texts: Iterable[str]
) -> "transformers.PreTrainedTokenizerFast":
    """The same tokenizer with the entries that occur in `texts`, those they are merged from, all bytes and special tokens.

    `texts` are cut into the same pieces as before, since every merge on the way to a kept entry is kept; other text into smaller ones. Ids
    follow the old order. Raises `ValueError` for a tokenizer that is no BPE, and for texts without a token.
    """
    from tokenizers import Tokenizer, pre_tokenizers

    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    model = plain["model"]
    if model["type"] != "BPE":
        raise ValueError(f"only a BPE can be cut down, found a tokenizer of type {model['type']}")
    used = _used(tokenizer, texts)
    if not used:
        raise ValueError("there is no token in the texts that are to say which entries stay")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    parts = {left + right: (left, right) for left, right in merges}
    wanted = [entry for entry, number in model["vocab"].items() if number in used]
    kept = set(pre_tokenizers.ByteLevel.alphabet()) | {one["content"] for one in plain["added_tokens"]}
    while wanted:
        entry = wanted.pop()
        if entry not in kept:
            kept.add(entry)
            wanted += parts.get(entry, ())
    in_order = sorted((entry for entry in model["vocab"] if entry in kept), key=lambda entry: model["vocab"][entry])
    model["vocab"] = {entry: number for number, entry in enumerate(in_order)}
    model["merges"] = [list(merge) for merge in merges if merge[0] + merge[1] in kept]
    for one in plain["added_tokens"]:
        one["id"] = model["vocab"].setdefault(one["content"], len(model["vocab"]))
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(plain)), **special)


def _used(tokenizer: "transformers.PreTrainedTokenizerFast", texts: Iterable[str]) -> set[int]:
    rest, used = iter(texts), set()
    while batch := list(itertools.islice(rest, _RESTRICT_BATCH)):
        used |= {number for ids in tokenizer(batch, add_special_tokens=False)["input_ids"] for number in ids}
    return used

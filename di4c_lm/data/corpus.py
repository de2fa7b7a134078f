"""A corpus made ready: its tokenizer, a source of training sequences, and what is held out."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor
from tqdm import tqdm

from di4c_lm.config import DataConfig
from di4c_lm.data.batches import PackedSource, StreamingSource
from di4c_lm.data.builtin import builtin_corpus
from di4c_lm.data.documents import Documents, Split, first_characters, held_out_side, train_side
from di4c_lm.data.files import file_documents
from di4c_lm.data.openwebtext import hub_documents
from di4c_lm.data.packing import encode_documents, pack, token_dtype, token_id
from di4c_lm.data.tokenizers import fingerprint, load_tokenizer

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

# Held-out text that is kept: the first documents up to so many characters. A stream is read only as far as that takes.
VALIDATION_CHARACTERS = 16_000_000
STREAMED_VALIDATION_CHARACTERS = 2_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """What a run reads. `fingerprint` changes with the tokenizer, and, unstreamed, with any training token."""

    name: str
    tokenizer: "transformers.PreTrainedTokenizerFast"
    train: PackedSource | StreamingSource
    validation: Int[Tensor, "N D"]
    validation_texts: list[str]
    fingerprint: str


def open_documents(config: DataConfig) -> Documents:
    """The corpus that `config` names, not yet read. Raises ValueError where a local path does not exist."""
    if config.kind == "builtin":
        return builtin_corpus()
    if config.kind == "files":
        assert config.path is not None
        return file_documents(config.path, text_key=config.text_key, skip_bad=config.skip_bad)
    return hub_documents(config.dataset, split=config.split, text_key=config.text_key, streaming=config.streaming)


class _Packer:
    """Documents to blocks of sequences, as the config asks."""

    def __init__(self, config: DataConfig, tokenizer: "transformers.PreTrainedTokenizerFast") -> None:
        self.length = config.length
        self.tokenizer = tokenizer
        self.frame = (token_id(tokenizer.bos_token_id), token_id(tokenizer.eos_token_id)) if config.wrap else None

    def blocks(self, texts: Iterable[str]) -> Iterator[Integer[np.ndarray, "n D"]]:
        return pack(encode_documents(texts, self.tokenizer), self.length, frame=self.frame)

    def all(self, texts: Iterable[str], name: str, side: str) -> Integer[np.ndarray, "N D"]:
        """Every sequence at once. Raises ValueError where there is none."""
        shown = iter(tqdm(texts, desc=f"tokenise, {side}", unit=" documents", delay=2, disable=None))
        blocks = list(self.blocks(shown))
        if not blocks:
            raise ValueError(
                f"{name}: the {side} documents hold fewer tokens than one sequence of data.length={self.length}: "
                f"give more text, a smaller data.length or another data.validation_share"
            )
        return np.concatenate(blocks)


def load_corpus(config: DataConfig, seed: int, cache_dir: Path) -> Corpus:
    """Read, tokenise and pack the corpus of `config`; `seed` orders its training sequences and nothing else.

    Documents are held out by their hash (about `config.validation_share` of them); of these the first are kept, up to
    16 million characters. Unstreamed, all training tokens are in memory (2 bytes each for up to 65,536 states). With
    `config.streaming` training documents are read, tokenised, packed and mixed as they are needed, and the validation
    is what the first 2 million held-out characters give.

    Raises:
        ValueError: an absent, empty, damaged or too small corpus, or a tokenizer that cannot be had; each by its name.
        ConnectionError: the hub did not answer; the message names the offline way.
    """
    documents = open_documents(config)
    share = config.validation_share
    split = Split.by_share(share) if config.streaming else Split.fitted(documents, share)
    tokenizer = load_tokenizer(config, train_side(documents, split), cache_dir)
    packer = _Packer(config, tokenizer)
    limit = STREAMED_VALIDATION_CHARACTERS if config.streaming else VALIDATION_CHARACTERS
    texts = list(first_characters(held_out_side(documents, split), limit))
    validation_ND = packer.all(texts, documents.name, "validation")
    content = hashlib.sha256(fingerprint(tokenizer).encode())
    content.update(validation_ND.tobytes())
    if config.streaming:
        content.update(documents.name.encode())
        train = StreamingSource(
            lambda: packer.blocks(train_side(documents, split)),
            shuffle_buffer=config.shuffle_buffer,
            seed=seed,
            name=documents.name,
        )
    else:
        tokens_ND = packer.all(train_side(documents, split), documents.name, "training")
        assert tokens_ND.dtype == token_dtype(len(tokenizer))
        content.update(tokens_ND.tobytes())
        train = PackedSource(tokens_ND, seed)
        logger.info("%s: %d training and %d validation sequences", documents.name, len(train), len(validation_ND))
    return Corpus(
        name=documents.name,
        tokenizer=tokenizer,
        train=train,
        validation=torch.from_numpy(validation_ND.astype(np.int64)),
        validation_texts=texts,
        fingerprint=content.hexdigest(),
    )

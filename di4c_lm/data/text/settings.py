"""Settings of a corpus."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from di4c_lm.core.settings import Ints, at_least, check, section, setting, unit
from di4c_lm.data.text.pairs import KEYS, Filling, Records


@section
class DataConfig:
    """A corpus, and how it is cut into sequences."""

    KINDS: ClassVar[Mapping[str, str]] = {
        "builtin": "the documentation of Python",
        "files": "the texts at `data.path`",
        "openwebtext": "`data.dataset` of the hub",
        "shards": "the folder of `di4c prepare shards` at `data.path`",
        "features": "the folder of `di4c prepare features` at `data.path`: x_t, and what the teacher says of it",
    }
    PATH_KIND: ClassVar[str] = "files"
    PATH_KEYS: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["builtin", "files", "openwebtext", "shards", "features"] = setting(
        "builtin", "where the texts come from; usually set as data=<kind> or data=<path>"
    )
    path: str | None = setting(
        None,
        "files (.jsonl, .json, .txt, .md, .parquet), folders or fsspec URLs, with commas between; of shards, their folder",
    )
    dataset: str = setting("Skylion007/openwebtext", "name of a data set on the Hugging Face hub")
    split: str = setting("train", "which split of data.dataset is read")
    text_key: str = setting("text", "field of a record that holds the text; a.b: field b of the object in field a")
    length: int = setting(64, "D, tokens in a sequence; where it is not said, those of a given teacher in a folder")
    streaming: bool = setting(False, "read documents during training, as they are needed, and never hold the corpus")
    shuffle_buffer: int = setting(10_000, "sequences held at once to shuffle a stream")
    records: Records = setting(
        "text",
        "what a record holds: text; prompt: prompt and response, prompt given; chat: messages, by the tokenizer's chat template",
    )
    packing: bool = setting(
        False,
        "of prompt and chat records: as many a sequence as there is room for, each with one EOS; false: one, filled up by EOS",
    )
    joined: bool = setting(False, "packed records see each other; false: each is read as if it stood alone")
    buckets: Ints = setting(
        (),
        "lengths below data.length, rising: a record is filled up to the next of them, and a batch has records of like length",
    )
    validation_share: float = setting(0.05, "share of the documents that is kept out of training, for validation")
    evaluator_share: float = setting(
        0.0,
        "share of the documents that only the trained evaluator reads; 0: it reads the training set. Not said: 0.2 where there is one",
    )
    tokenizer: str = setting(
        "train",
        "train: train a BPE on the corpus (shards bring their own); else a folder, file or hub name. Not said: a given teacher's",
    )
    mask_id: int | None = setting(
        None,
        "id of MASK in a given tokenizer that has one of its own; null: the last, added where there is none. Not said: a given teacher's",
        identity=False,
    )
    vocab_size: int = setting(1024, "entries of a tokenizer trained here")
    max_lost: float = setting(
        0.1, "largest share of the characters that the tokenizer may not know; above it the run ends", identity=False
    )
    wrap: bool = setting(False, "put BOS and EOS at the ends of each sequence, as MDLM and SDTT do")
    skip_bad: bool = setting(False, "skip records, files and shards that cannot be read, and count them")
    verify: Literal["once", "always", "size"] = setting(
        "once",
        "when the checksums of shards are read: once per machine, at every start (always), or only sizes are compared (size)",
    )

    def __post_init__(self) -> None:
        at_least(self, 2, "length")
        check(self.mask_id is None or self.mask_id >= 0, "mask_id", self.mask_id, "an id of at least 0, or null")
        at_least(self, 258, "vocab_size")
        at_least(self, 1, "shuffle_buffer")
        unit(self, "max_lost")
        check(0 < self.validation_share < 1, "validation_share", self.validation_share, "in (0, 1)")
        rest = 1 - self.validation_share
        check(0 <= self.evaluator_share < rest, "evaluator_share", self.evaluator_share, f"in [0, {rest:g})")
        aside = self.at_hand or self.evaluator_share == 0
        check(aside, "evaluator_share", self.evaluator_share, "0 where streaming=true, or kind is shards or features")
        check(self.records == "text" or not self.wrap, "wrap", self.wrap, f"false where records={self.records}")
        rising = tuple(sorted({*self.buckets}))
        fits = self.buckets == rising and all(2 <= one < self.length for one in rising)
        check(fits, "buckets", self.buckets, f"rising lengths of at least 2 and below length={self.length}")
        check(not (self.packing and self.buckets), "buckets", self.buckets, "left out where packing=true")
        check(self.kind != "files" or bool(self.path), "path", self.path, "a file or folder where kind=files")
        if self.is_prepared:
            check(bool(self.path), "path", self.path, f"a folder of shards where kind={self.kind}")
            check(not self.streaming, "streaming", self.streaming, f"false where kind={self.kind}")

    @property
    def document_key(self) -> str:
        """The field of a record that is a document, or those that make one."""
        return self.text_key if self.records == "text" else KEYS[self.records]

    @property
    def filling(self) -> Filling:
        """How records fill sequences."""
        return Filling(packing=self.packing, joined=self.joined, buckets=self.buckets)

    @property
    def is_prepared(self) -> bool:
        """Whether the sequences were made before and are mapped."""
        return self.kind in ("shards", "features")

    @property
    def at_hand(self) -> bool:
        """Whether the whole corpus is read when a run begins."""
        return not self.is_prepared and not self.streaming

    def unused(self) -> dict[str, str]:
        """What other kinds of corpora read."""
        used_by = {
            "path": ("files", "shards", "features"),
            "dataset": ("openwebtext",),
            "split": ("openwebtext",),
            "text_key": ("files", "openwebtext"),
            "skip_bad": ("files", "openwebtext", "shards", "features"),
            "verify": ("shards", "features"),
            "validation_share": ("builtin", "files", "openwebtext"),
        }
        found = {key: f"where data.kind={self.kind}" for key, kinds in used_by.items() if self.kind not in kinds}
        if "path" in found:
            found["path"] += "; data=<path> reads files"
        if self.records != "text":
            found["text_key"] = f"where data.records={self.records}"
        else:
            found |= dict.fromkeys(("packing", "joined", "buckets"), "where data.records=text")
        if not self.packing:
            found["joined"] = "where data.packing=false"
        if not self.streaming:
            found["shuffle_buffer"] = "where data.streaming=false"
        if self.tokenizer != "train" or self.is_prepared:
            found["vocab_size"] = "where the tokenizer is given"
        if self.tokenizer == "train" and not self.is_prepared:
            found["mask_id"] = "where the tokenizer is trained here"
        return found

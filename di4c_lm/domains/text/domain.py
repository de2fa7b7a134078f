"""Text: tokens under a masked process, DiT networks, MDLM teachers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from di4c_lm.checkpoints.load import read_checkpoint
from di4c_lm.data.batches import Source, Stream, first_sequences
from di4c_lm.data.text.corpus import Corpus, load_corpus, verify_corpus
from di4c_lm.domains.domain import FinishedRun, Pretraining
from di4c_lm.domains.text.model import VALIDATION, TextModel, check_tokenizer
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.measure.text.gen_ppl import GenPplConfig
from di4c_lm.networks.dit import DIT
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.training.distributed import World, barrier


@dataclass(frozen=True, kw_only=True)
class TextData:
    """A corpus in sequences of `length` tokens, in the order of the run's seed whoever reads it."""

    corpus: Corpus
    length: int

    @property
    def fingerprint(self) -> str:
        """Of tokenizer and tokens."""
        return f"{self.corpus.fingerprint} {self.length}"

    def source(self, seed: int) -> Source | Stream:
        """The training sequences."""
        return self.corpus.train

    def first_sequences(self, seed: int) -> Int64[Tensor, "N D"]:
        """From the beginning of the training sequences."""
        return first_sequences(self.corpus.train, self.length)

    def save(self, folder: Path) -> None:
        """Leave the validation set: which sequences it holds depends on files that a finished run may have lost."""
        from safetensors.torch import save_file

        save_file({"validation": self.corpus.validation.int()}, str(folder / VALIDATION))


class TextDomain:
    """See `Domain`."""

    name = "text"
    settings = TextSettings
    model = TextModel
    pretraining = Pretraining(objective=Mdlm(times="iid"), sections=("model",), zero_gates=True)

    def data(self, settings: TextSettings, world: World, cache_dir: Path) -> TextData:
        """Read, tokenised and packed; shards are verified once a machine."""
        at_hand = not settings.data.streaming and settings.data.kind != "shards"
        if settings.evaluator.path == "train" and not at_hand and not settings.eval.skip:
            raise ValueError(
                "evaluator.path must be a folder or hub name where data.streaming=true or data.kind=shards, or eval.skip=true, got 'train'"
            )
        if world.local_rank == 0:
            verify_corpus(settings.data, cache_dir)
        barrier()
        corpus = load_corpus(settings.data, settings.train.seed, cache_dir)
        return TextData(corpus=corpus, length=settings.data.length)

    def network(self, settings: TextSettings, data: TextData) -> DIT:
        """A DiT on the tokenizer's entries."""
        return DIT(settings.model, num_states=len(data.corpus.tokenizer))

    def read(self, path: Path | str, settings: TextSettings, data: TextData) -> TextModel:
        """The network of any of the field's checkpoints, its states those of the corpus's tokenizer."""
        tokenizer, teacher, length = data.corpus.tokenizer, settings.teacher, settings.data.length
        weights = read_checkpoint(path, revision=teacher.revision, weights=teacher.weights, length=length)
        check_tokenizer(weights, tokenizer, path)
        return self.wrap(weights.build(path), settings, data)

    def wrap(self, network: Any, settings: TextSettings, data: TextData) -> TextModel:
        """With the corpus's tokenizer."""
        return TextModel(denoiser=network, tokenizer=data.corpus.tokenizer, length=settings.data.length)

    def report(self, run: FinishedRun, settings: GenPplConfig | None = None, data: TextData | None = None) -> str:
        """Generative perplexity and entropy, and for an MDLM the bound on the validation set's perplexity."""
        from di4c_lm.domains.text.report import report

        return report(run, settings, None if data is None else data.corpus)


DOMAIN = TextDomain()

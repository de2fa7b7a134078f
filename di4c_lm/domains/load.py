"""A model of whatever domain, by a path or a hub name."""

from pathlib import Path
from typing import Any

from di4c_lm.checkpoints.load import domain_of, find, stated_mask
from di4c_lm.checkpoints.weights import WhichWeights
from di4c_lm.core.settings import check
from di4c_lm.data.text.tokenizers import has_tokenizer
from di4c_lm.domains.domain import PARTS, STUDENT, FinishedRun, Model, find_domain

_NAMES = {"text": "text", "pixels": "cifar10", "codes": "imagenet"}  # of checkpoints: of `DOMAINS`


def load(
    source: Path | str,
    *,
    which: str = STUDENT,
    tokenizer: str | None = None,
    codec: str | None = None,
    revision: str | None = None,
    weights: WhichWeights = "ema",
    device: str = "cpu",
) -> Any:
    """The model at `source`, ready to sample from: text, pixels of CIFAR-10, or codes of ImageNet, as its files say.

    Examples:
        >>> model = di4c_lm.load("outputs/stories")
        >>> len(model.sample(2, steps=4, prompt="Once"))
        2
        >>> teacher = di4c_lm.load("outputs/stories", which="teacher")
        >>> teacher.logits(teacher.encode("Once")).shape[:2] == (1, teacher.length)
        True

    Args:
        source: a run's folder, one that `save_pretrained` wrote or that was pushed to the hub, a hub name, or a checkpoint of the field's
            formats.
        which: student or teacher, where `source` is a run; of a chain of rounds the name of a round.
        tokenizer: the tokenizer of a text checkpoint that comes without one: a folder, a file or a hub name.
        codec: the folder of the VQGAN, of a checkpoint of codes that comes without it.
        revision: branch, tag or commit, where `source` is a hub name.
        weights: ema or raw, of a checkpoint that holds both the moving average and the raw weights.
        device: where the model runs, such as cpu or cuda.

    Returns:
        A `TextModel`, `CifarModel` or `CodeModel`, in evaluation mode.

    Raises:
        ValueError: nothing there, a format that is not known, damaged or foreign files, a tokenizer that is missing or another one.
        ConnectionError: the hub does not answer.
    """
    path = Path(source).expanduser()
    if (path / PARTS).is_file():
        run = FinishedRun.read(path)
        names = list(run.models)
        if which == STUDENT and STUDENT not in run.models:  # a chain of rounds
            which = names[-1]
        check(which in run.models, "which", which, f"one of {', '.join(names)}")
        return run.domain.model.from_pretrained(run.models[which], device=device)
    check(which == STUDENT, "which", which, f"{STUDENT} where {source} is no run")
    path = find(source, revision)
    kind = domain_of(path)
    model: Any = find_domain(_NAMES[kind]).model
    check(tokenizer is None or kind == "text", "tokenizer", tokenizer, f"left out for a model of {kind}")
    check(codec is None or kind == "codes", "codec", codec, f"left out for a model of {kind}")
    if kind == "codes":
        return model.from_pretrained(path, codec, device=device)
    if kind != "text" or has_tokenizer(path):
        return model.from_pretrained(path, device=device)
    return _with_tokenizer(model, path, source, tokenizer, weights, device)


def _with_tokenizer(
    model: Any, path: Path, source: Path | str, tokenizer: str | None, weights: WhichWeights, device: str
) -> Model:
    from di4c_lm.data.text.settings import DataConfig
    from di4c_lm.data.text.tokenizers import load_tokenizer

    allowed = f"a folder, file or hub name, since {source} comes without one"
    if tokenizer is None or tokenizer == "train":
        check(False, "tokenizer", tokenizer, allowed)
    found = load_tokenizer(DataConfig(tokenizer=str(tokenizer), mask_id=stated_mask(path)), (), Path())
    return model.from_checkpoint(path, found, weights=weights, device=device)

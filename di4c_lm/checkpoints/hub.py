"""The Hugging Face hub, with policy; where it does not answer, the error names the folder that would do instead."""

from pathlib import Path

from di4c_lm.checkpoints.files import CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE
from di4c_lm.core.retry import look_for_hub, with_retries

OFFLINE_WAY = f"teacher=<folder with {WEIGHTS_FILE} (or {PICKLE_FILE}) + {CONFIG_FILE}>, as `hf download` writes it"
_CODEC_FILES = (f"*/{WEIGHTS_FILE}", f"*/{CONFIG_FILE}")  # of a model of images as codes
_TOKENIZER_FILES = ("tokenizer*.json", "*.model", "vocab.json", "merges.txt", "special_tokens_map.json")


def snapshot(name: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The local folder of a model on the hub: weights, config and tokenizer, and no code. Cached; a cached copy serves offline.

    Raises:
        ConnectionError: the hub did not answer after several attempts; it names the offline way.
        ValueError: no such name or revision, or it is private or gated.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    what = f"{name} at revision {revision or 'main'}"

    def download() -> str:
        wanted = [*_files(WEIGHTS_FILE), CONFIG_FILE, *_TOKENIZER_FILES, *_CODEC_FILES]
        folder = snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=wanted)
        if not any((Path(folder) / file).is_file() for file in (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json")):
            wanted = _files(PICKLE_FILE)
            folder = snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=wanted)
        return folder

    try:
        look_for_hub()
        return Path(with_retries(download, what, OFFLINE_WAY))
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError) as error:
        raise ValueError(
            f"{what}: neither a file or folder here nor a model that the hub gives us: {first_line(error)}. "
            f"Instead: {OFFLINE_WAY}"
        ) from error


def _files(name: str) -> list[str]:
    """A weights file, its index, and its shards."""
    stem, _, suffix = name.rpartition(".")
    return [name, f"{name}.index.json", f"{stem}-*-of-*.{suffix}"]


def first_line(error: Exception) -> str:
    """What a library says is wrong, without what it adds."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

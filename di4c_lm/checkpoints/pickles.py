"""PyTorch's pickled files, read without running anything that they name."""

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Lightning keeps a run's hyper-parameters beside the weights: an OmegaConf config, a tokenizer, callbacks by their class. Each of these
# names, and those of plain values that trainers keep, is read as `_Inert`, which keeps what it is given and does nothing; the classes
# themselves are neither imported nor called.
_INERT = re.compile(
    r"omegaconf\.(dictconfig\.DictConfig|listconfig\.ListConfig|base\.(Container)?Metadata|nodes\.\w+Node)"
    r"|tokenizers\.(Tokenizer|AddedToken|models\.Model)"
    r"|transformers\.(models\.\w+\.)?tokenization_\w+\.\w*Tokenizer\w*"
    r"|(pytorch_lightning|lightning\.pytorch)\.callbacks\.[\w.]+"
    r"|numpy\.(_?core\.multiarray\.scalar|dtype|dtypes\.\w+)|_codecs\.encode"  # numbers of numpy
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path|argparse\.Namespace|datetime\.\w+"
    r"|typing\.Any|builtins\.(int|float|bool|str|list|dict|tuple)"
)
_STATES = ("state_dict", "model", "model_state_dict", "module")  # where trainers keep the weights
LFS = b"version https://git-lfs"  # how a pointer to a file that was not fetched begins
_DEFAULT_DICT = "collections.defaultdict"
# Of `torch.load` and the unpickler in it, for bytes that are no such file.
_FAILURES = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    struct.error,
)


class _Inert:
    """Stands for an object of another library."""

    def __new__(cls, *_: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _empty_dict(*_: object) -> dict[Any, Any]:
    return {}


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict in a file of `torch.save`: tensors, numbers and text; configs and tokenizers of Lightning runs become inert stubs.

    Raises:
        ValueError: the file is absent, truncated or another format, holds no dict, or names any code but those known configs
            and tokenizers; nothing in it has been run then.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of torch.save, found nothing")
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ValueError(f"{path}: found a Git LFS pointer to the file: fetch it by `git lfs pull`")
    zipped = zipfile.is_zipfile(path)
    names: list[str] = []
    if zipped:
        with _explained(path):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    code = sorted(name for name in names if name != _DEFAULT_DICT and not _INERT.fullmatch(name))
    if code:
        raise ValueError(
            f"{path}: the file carries code and is refused: {', '.join(code)}. If you trust its author, load it elsewhere with "
            "weights_only=False and save only its 'state_dict' (and 'ema') with torch.save"
        )
    stubs: list[Any] = [(_empty_dict if name == _DEFAULT_DICT else _Inert, name) for name in names]
    with _explained(path), torch.serialization.safe_globals(stubs):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict, found {type(content).__name__}")
    return content


def state_in(content: Mapping[str, Any], path: Path, key: str = "") -> dict[str, Tensor]:
    """The tensors under `key` of what was read from `path`; without a key those under a name that trainers use, or all of it.

    Raises `ValueError` where there are none.
    """
    keys = (key,) if key else _STATES
    state = next((content[one] for one in keys if isinstance(content.get(one), dict)), None if key else content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        wanted = f"{key!r}, a dict of tensors" if key else "'state_dict' or a dict of tensors"
        raise ValueError(f"{path}: expected {wanted}, found the keys {sorted(map(str, content))[:8]}")
    return state


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"{path}: expected a whole file of torch.save that holds only tensors, found {path.stat().st_size} bytes that are "
            f"truncated, another format, or carry code, which is refused: {reason}"
        ) from error


def plain(value: Any) -> Any:
    """Numbers, text, lists and dicts as they are; an OmegaConf stub as the values in it; any other object as None.

    Keys become text, so that the result fits into JSON.
    """
    if isinstance(value, _Inert):
        state = value.state if isinstance(value.state, dict) else {}
        return plain(state.get("_content", state.get("_val")))
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) else None

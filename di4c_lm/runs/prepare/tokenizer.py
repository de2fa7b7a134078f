"""Cut a BPE down to the entries that a corpus uses:

    di4c prepare tokenizer tokenizer=gpt2 path=stories.jsonl out=tokenizers/stories

`data.tokenizer=tokenizers/stories` then trains on it. The corpus is cut into the same pieces as by the whole tokenizer.
"""

import functools
from pathlib import Path

from di4c_lm.core.settings import check, section, setting
from di4c_lm.data.text.files import file_documents
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import load_tokenizer, restrict, save_tokenizer
from di4c_lm.runs.command import run_command


@section
class Settings:
    """Cut a BPE down to the entries that a corpus uses."""

    tokenizer: str = setting("gpt2", "the byte-level BPE to cut down: a folder, file or hub name")
    path: str = setting("", "corpus: files or a folder, as data.path takes them")
    text_key: str = setting("text", "field of a record that holds the text")
    out: str = setting("", "folder to write the new tokenizer to")


def write_restricted(settings: Settings) -> None:
    """Cut it down and say how many entries are left."""
    check(settings.tokenizer != "train", "tokenizer", settings.tokenizer, "a folder, file or hub name")
    check(settings.path, "path", settings.path, "the corpus")
    check(settings.out, "out", settings.out, "a folder to write to")
    whole = load_tokenizer(DataConfig(tokenizer=settings.tokenizer), (), Path())
    found = restrict(whole, file_documents(settings.path, text_key=settings.text_key).read())
    save_tokenizer(found, Path(settings.out))
    print(f"{settings.out}: {len(found)} of {len(whole)} entries")


main = functools.partial(run_command, "di4c prepare tokenizer", Settings, write_restricted)

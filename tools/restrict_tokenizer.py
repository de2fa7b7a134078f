"""Cut a BPE down to the entries that a corpus uses:

    python tools/restrict_tokenizer.py tokenizer=gpt2 path=stories.jsonl out=tokenizers/stories

`data.tokenizer=tokenizers/stories` then trains on it. The corpus is cut into the same pieces as by the whole tokenizer.
"""

import sys
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from di4c_lm.core import cli
from di4c_lm.core.settings import check
from di4c_lm.data.text.files import file_documents
from di4c_lm.data.text.restricted import restrict
from di4c_lm.data.text.tokenizers import load_tokenizer
from di4c_lm.domains.text.settings import DataConfig


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class Settings:
    """Cut a BPE down to the entries that a corpus uses.

    tokenizer            folder, file or hub name of a byte-level BPE
    path                 the corpus: a file or folder, as data.path takes it
    text_key             the field of a jsonl or parquet record that holds the text
    out                  the folder that the new tokenizer is written to
    """

    tokenizer: str = "gpt2"
    path: str | None = None
    text_key: str = "text"
    out: str | None = None

    def __post_init__(self) -> None:
        check(self.tokenizer != "train", "tokenizer", self.tokenizer, "a folder, file or hub name")


def main(argv: list[str]) -> int:
    """Cut it down and say how many entries are left; bad input ends with exit status 2."""
    settings = cli.parse_words(Settings, argv, "tools/restrict_tokenizer.py")
    if settings.path is None or settings.out is None:
        cli.fail("path and out are needed: the corpus, and the folder to write to")
    try:
        whole = load_tokenizer(DataConfig(tokenizer=settings.tokenizer), (), Path())
        found = restrict(whole, file_documents(settings.path, text_key=settings.text_key).read())
    except (ValueError, ConnectionError) as error:
        cli.fail(str(error))
    found.save_pretrained(settings.out)
    print(f"{settings.out}: {len(found)} of {len(whole)} entries")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The corpus that every Python carries."""

import hashlib
import os
import subprocess
import sys

from di4c_lm.data.text.builtin import _docstrings, builtin_corpus, builtin_documents

HASH_ALL = (
    "import hashlib; from di4c_lm.data.text.builtin import builtin_documents;"
    "print(hashlib.sha256('\\0'.join(builtin_documents()).encode()).hexdigest())"
)


def test_size_and_shape() -> None:
    documents = builtin_documents()
    assert 1_500_000 < sum(map(len, documents)) < 3_000_000
    assert len(documents) > 300
    assert len(set(documents)) == len(documents)
    assert min(map(len, documents)) >= 200
    assert list(builtin_corpus().read()) == documents


def test_it_is_english_prose_about_python() -> None:
    text = "\n".join(builtin_documents())
    assert text.count(" the ") > 10_000
    assert "assert statement" in text.lower()


def test_another_process_finds_the_same() -> None:
    here = hashlib.sha256("\0".join(builtin_documents()).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    there = subprocess.run(
        [sys.executable, "-c", HASH_ALL], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here


def test_docstrings_of_a_source() -> None:
    source = (
        b'"""Top."""\nclass A:\n    """Of A."""\n    def f(self):\n        """Of f."""\ndef g():\n    """Of A."""\n'
    )
    assert _docstrings(source) == ["Top.", "Of A.", "Of f."]
    assert _docstrings(b"def broken(:") == _docstrings(b"\0") == []

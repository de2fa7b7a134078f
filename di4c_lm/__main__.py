"""The command `di4c`, also `python -m di4c_lm`."""

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from di4c_lm import __version__
from di4c_lm.core.terminal import errors_end, fail, say_all_letters
from di4c_lm.core.waiting import wait_by_load

_HELP = ("-h", "--help")


@dataclass(frozen=True)
class Command:
    """A word of the command line: the module whose `main(argv)` does it, or the words that may follow."""

    help: str
    module: str = ""
    passed_on: tuple[str, ...] = ()  # words that `main` is told first
    below: "Mapping[str, Command]" = field(default_factory=dict)
    otherwise: str = ""  # the word below that is meant where none is said


def _evaluations() -> dict[str, Command]:
    from di4c_lm.runs.evaluate import EVALUATIONS

    return {name: Command(one.help, "di4c_lm.runs.evaluate", (name,)) for name, one in EVALUATIONS.items()}


def commands() -> dict[str, Command]:
    """All words that may follow `di4c`."""
    runs = "di4c_lm.runs"
    train = {
        "text": "text, from a teacher such as MDLM or one that is trained first; the default",
        "cifar10": "pixels, from a tauLDR teacher",
        "imagenet": "codes of images, from a MaskGIT teacher",
    }
    prepare = {
        "shards": "tokenise a corpus once, into a folder of shards",
        "codes": "encode images to the codes of a VQGAN once",
        "teacher-samples": "write a teacher's own samples, for a student that is made without data",
        "features": "write what a frozen teacher says of noised sequences, so that a head is trained without running it",
        "tokenizer": "cut a BPE down to the entries that a corpus uses",
        "miniature": "a small decoder of random weights in a published format, to try out a recipe by",
    }
    bench = {
        "loss": "time and memory of a Di4C training step on text, against the plain way",
        "images": "time and memory of a Di4C training step of tauLDR's U-Net, against the plain way",
        "sampling": "time of a sampling step, against the plain way or the teacher",
        "zero": "time and memory of a rank by ZeRO stage",
        "serving": "tokens a second of a model, by the number of texts sampled at once",
        "scaling": "how the costs of a training step and a sampling call grow with each size, in one picture",
        "features": "time of a training step of a head, from features made before against running the teacher",
        "decoder": "time and memory of a decoder's step, against the same network of transformers",
        "loader": "speed of preparing and loading text",
        "gpu_day": "exactness, speed, memory and a training on a GPU, in parts of ten minutes; torch and NumPy alone",
    }
    return {
        "train": Command(
            "distil a student of text, cifar10 or imagenet, or a chain of them",
            below={name: Command(line, f"{runs}.train", (name,)) for name, line in train.items()},
            otherwise="text",
        ),
        "sample": Command("write text, or make images, with a student or teacher", f"{runs}.sample"),
        "demo": Command("a page where models are sampled side by side, step by step", f"{runs}.demo.demo"),
        "eval": Command("measure the models of a run, and write a report", below=_evaluations()),
        "prepare": Command(
            "make shards of text, of a teacher's samples or features, codes of images, a smaller tokenizer, or a miniature of a decoder",
            below={name: Command(line, f"{runs}.prepare.{name.replace('-', '_')}") for name, line in prepare.items()},
        ),
        "convert": Command("write a checkpoint in another format", f"{runs}.convert"),
        "doctor": Command("what this machine offers, what a run takes, and whether it can go", f"{runs}.doctor.doctor"),
        "ablate": Command("run a study of settings over seeds, and compare them", f"{runs}.ablate.ablate"),
        "bench": Command(
            "measure time and memory, against the plain way",
            below={name: Command(line, f"{runs}.bench.{name}") for name, line in bench.items()},
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the words say; the exit status, 2 for words that there are not."""
    words, said, below = list(sys.argv[1:] if argv is None else argv), ["di4c"], commands()
    say_all_letters()
    if words[:1] == ["--version"]:
        sys.stdout.write(f"di4c-lm {__version__}\n")
        return 0
    otherwise = ""
    while True:
        if words and words[0] in below:
            said.append(words.pop(0))
        elif otherwise and (not words or "=" in words[0] or words[0].startswith("-")):
            said.append(otherwise)
        elif not words or words[0] in _HELP:
            sys.stdout.write(_usage(said, below))
            return 0
        else:
            near = difflib.get_close_matches(words[0], below, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(below)}"
            fail(f"{' '.join(said)}: there is no {words[0]!r}; {hint}")
        command = below[said[-1]]
        if command.module:
            wait_by_load()
            with errors_end():
                main_of = import_module(command.module).main
            return main_of([*command.passed_on, *words])
        below, otherwise = command.below, command.otherwise


def _usage(said: Sequence[str], below: Mapping[str, Command]) -> str:
    lines = [f"usage: {' '.join(said)} <{'|'.join(below)}> ...", ""]
    lines += [f"  {name:<16} {command.help}" for name, command in below.items()]
    more = [] if len(said) > 1 else ["", "  --version        the version"]
    end = ["", f"`{' '.join(said)} <one of these> --help` tells more."]
    return "\n".join([*lines, *more, *end]) + "\n"


if __name__ == "__main__":
    sys.exit(main())

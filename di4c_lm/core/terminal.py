"""What a script says to its terminal and its log file, and how it ends."""

import errno
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

BAD_INPUT, INTERRUPTED = 2, 130  # exit statuses
EXTRAS = {  # module: the extra of this package that brings it
    **dict.fromkeys(("deepspeed", "datasets", "wandb", "tensorboard"), "train"),
    **dict.fromkeys(("matplotlib", "scipy", "sklearn", "mauve", "nltk"), "eval"),
    **dict.fromkeys(("torch_fidelity", "torchvision"), "images"),
    **dict.fromkeys(("anyio", "starlette", "uvicorn"), "demo"),
    "flash_attn": "flash",
    "peft": "lora",
}
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FORESEEN = (ValueError, OSError)
_LINE_SECONDS = 30.0  # from one line of a bar to the next, where it is lines
_for_files = logging.getLogger(
    "di4c_lm.log_file"
)  # what a terminal is shown by other ways: the progress of bars, and the error at the end
_for_files.propagate = False


class RunError(RuntimeError):
    """What a run foresees and cannot go on from: users are shown its message alone."""


class Interrupted(Exception):
    """A training saved its state and left on the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by signal {number}")
        self.number = number


def run_script(run: Callable[[], int], close: Callable[[], None] = lambda: None) -> NoReturn:
    """Run a launch script's job, then `close`, and end the program with the status it returns, or as `errors_end` has it."""
    log_to_terminal()
    try:
        with errors_end():
            status = run()
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        status = ended.code
    finally:
        close()
        logging.shutdown()
    # All is saved and closed. Native threads of the collectives' libraries may outlive the interpreter, and then abort a run that is over.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def errors_end() -> Iterator[None]:
    """Within it an error that is foreseen ends the program with one line on stderr and status 2, Ctrl-C with status 130.

    Foreseen are `ValueError` (bad input), `OSError` (the system, or a server that does not answer), `RunError`, memory that runs out, and
    a module that an extra would bring.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        line = foreseen(error)
        if line is None:
            raise
        fail(line)


def foreseen(error: BaseException) -> str | None:
    """The line that a user is shown of an error that is foreseen (see `errors_end`); of another, None."""
    if isinstance(error, ModuleNotFoundError):
        name = error.name or ""
        return not_installed(name) if name.partition(".")[0] in EXTRAS else None
    if isinstance(error, (*_FORESEEN, RunError)):
        return _in_one_line(message_of(error))
    if _is_out_of_memory(error):
        return f"out of memory: {error or 'an allocation failed'}; take smaller batches or a smaller model"
    return None


def not_installed(module: str) -> str:
    """What to say of an absent module that an extra brings."""
    extra = EXTRAS[module.partition(".")[0]]
    return f"{module} is not installed: the extra [{extra}] of di4c-lm brings it; install it again from where it is, with .[{extra}]"


def fail(message: object) -> NoReturn:
    """End the program as bad input does: the message on stderr, in one line, exit status 2."""
    sys.stderr.write(f"error: {_in_one_line(str(message))}\n")
    raise SystemExit(BAD_INPUT)


def message_of(error: BaseException) -> str:
    """What is wrong, and of an error of the system where, and what can be done."""
    if not isinstance(error, OSError) or error.errno is None or error.strerror is None:
        return str(error) or type(error).__name__
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    advice = "; make room there, or choose another folder" if error.errno in _FULL else ""
    advice = "; choose a place that you may use, or change its permissions" if error.errno in _CLOSED else advice
    return f"{where}{error.strerror}{advice}"


def _in_one_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines()]
    return " ".join(line if line.endswith((":", ",", ";", ".")) else f"{line};" for line in lines if line).rstrip(";")


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's own error, or one of PyTorch's."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def agrees(question: str) -> bool:
    """Whether a user at the terminal says yes; no where nobody can be asked."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def say_all_letters() -> None:
    """From here on a letter that the terminal's encoding lacks (λ in ASCII) is shown as its number, and is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def progress_bar(*items: Any, **options: Any) -> Any:
    """A bar of tqdm on stderr, or in the notebook; where there is neither, a line every half minute and one at the end in its place.

    These lines go to the files of `log_to_file` too, whatever a user looks at.
    """
    from tqdm import auto, notebook, std

    in_notebook = issubclass(auto.tqdm, notebook.tqdm_notebook)
    shown: Any = notebook.tqdm_notebook if in_notebook else std.tqdm

    is_lines = not in_notebook and not sys.stderr.isatty()

    class Bar(shown):
        _line_after = 0.0

        def display(self, *args: Any, **kwargs: Any) -> Any:
            is_due = self._line_after <= time.monotonic()
            if is_due:
                self._line_after = time.monotonic() + 0.9 * _LINE_SECONDS
                if self.leave:
                    line = self.format_meter(**{**self.format_dict, "ncols": 100, "bar_format": None})
                    _for_files.info("%s", line)
            return super().display(*args, **kwargs) if is_due or not is_lines else None

        def close(self) -> None:
            self._line_after = 0.0
            super().close()

    if in_notebook:
        return Bar(*items, **options)
    if not is_lines:
        return Bar(*items, **{"dynamic_ncols": True, "mininterval": 0.5, **options})
    if options.get("leave") is False:  # a bar within another
        options["disable"] = True
    intervals = {"mininterval": _LINE_SECONDS, "maxinterval": 2 * _LINE_SECONDS}
    return Bar(*items, **{"ncols": 100, **intervals, **options}, file=_Lines())


class _Lines:
    """What a bar writes to: each state of it a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n\x1b[A "):
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


class Stages:
    """Says which of the stages of a job begins, and how long the one before it took."""

    def __init__(self, *names: str) -> None:
        self._names, self._begun, self._start = names, "", time.monotonic()

    def begin(self, name: str, *details: object) -> None:
        """The stage called `name` begins; `details` are what is worth knowing of it."""
        took = self._took()
        place = f"stage {self._names.index(name) + 1} of {len(self._names)}"
        logger.info("%s: %s%s%s", place, ", ".join(map(str, (name, *details))), took and " ", took)
        self._begun, self._start = name, time.monotonic()

    def end(self) -> None:
        """The last stage is over."""
        logger.info("all %d stages are done %s", len(self._names), self._took())

    def _took(self) -> str:
        from tqdm import tqdm

        return f"({self._begun} took {tqdm.format_interval(time.monotonic() - self._start)})" if self._begun else ""


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Within it, all messages and the progress of bars are appended to `path`, each line with its time, and so is an error that ends it."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root, ours = logging.getLogger(), logging.getLogger("di4c_lm")
    level = ours.level
    if not ours.isEnabledFor(logging.INFO):  # where a notebook, say, has set up no logging
        ours.setLevel(logging.INFO)
    for one in (root, _for_files):
        one.addHandler(handler)
    try:
        yield
    except (*_FORESEEN, RunError, Interrupted) as error:
        _for_files.error("%s", _in_one_line(f"error: {message_of(error)}"))
        raise
    except BaseException as error:
        _for_files.error("ended by %s", type(error).__name__, exc_info=error)
        raise
    finally:
        for one in (root, _for_files):
            one.removeHandler(handler)
        with suppress(OSError):
            handler.close()
        ours.setLevel(level)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A disk that is full ends a run where it saves, with a message, and not where it logs."""


def log_to_terminal() -> None:
    """Messages of this rank to stderr, past progress bars: all of them on rank 0, errors alone elsewhere."""
    from tqdm import tqdm

    say_all_letters()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(self.format(record), file=sys.stderr)

    main_rank = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if main_rank else logging.ERROR, format="%(message)s", handlers=[Handler()])
    for noisy in ("httpx", "deepspeed", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

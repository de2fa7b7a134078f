"""What a script says to its terminal, and how it ends."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


def run_script(run: Callable[[], int], close: Callable[[], None] = lambda: None) -> NoReturn:
    """Run a launch script's job, then `close`, and end the program: with the status it returns, or with 2 and a message for bad input."""
    log_to_terminal()
    try:
        status = run()
    except (ValueError, ConnectionError) as error:
        sys.stderr.write(f"error: {error}\n")
        status = 2
    finally:
        close()
        logging.shutdown()
    # All is saved and closed. Native threads of the collectives' libraries may outlive the interpreter, and then abort a run that is over.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def bad_input_ends(*more: type[Exception]) -> Iterator[None]:
    """Within it `ValueError`, `ConnectionError` and `more` end the program as bad input does."""
    try:
        yield
    except (ValueError, ConnectionError, *more) as error:
        fail(error)


def fail(message: object) -> NoReturn:
    """End the program as bad input does: the message on stderr, exit status 2."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def log_to_terminal() -> None:
    """Messages of this rank to stderr, past progress bars: all of them on rank 0, errors alone elsewhere."""
    from tqdm import tqdm

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(self.format(record), file=sys.stderr)

    main_rank = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if main_rank else logging.ERROR, format="%(message)s", handlers=[Handler()])
    for noisy in ("httpx", "deepspeed", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

"""How every command ends: errors become one message and an exit code, signals a clean stop."""

import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from bagau_bids.errors import EXIT_BUILD, EXIT_USAGE, BagauError

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


class UnexpectedError(BagauError):
    """A fault of the program itself; its traceback is kept in a file that the message names."""

    exit_code = EXIT_BUILD


class Terminated(BaseException):
    """The process was asked to end, as SLURM does at the time limit."""


def exit_code_of(program: str, action: Callable[[], int]) -> int:
    """Carry a command out and return its exit code; say on stderr what went wrong, in one message.

    Parameters
    ----------
    program
        Name that stands before the message.
    action
        The command; returns its exit code.

    Returns
    -------
    int
        That of the action; that of a `BagauError`; 2 for a command line argparse refused;
        130 after SIGINT and 143 after SIGTERM, as a shell reports them; 70 for a fault of ours,
        whose traceback is written to a file.
    """
    try:
        with _sigterm_raises():
            return action()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE if stop.code else 0
    except BagauError as error:
        message, code = str(error), error.exit_code
    except KeyboardInterrupt:
        message, code = _stopped("interrupted"), EXIT_INTERRUPTED
    except Terminated:
        message, code = _stopped("asked to end"), EXIT_TERMINATED
    except Exception as error:
        unexpected = describe_unexpected(error, _keep_traceback(error))
        message, code = str(unexpected), unexpected.exit_code
    print(f"{program}: {message}", file=sys.stderr, flush=True)
    return code


def describe_unexpected(error: BaseException, path: Path) -> UnexpectedError:
    """Return the error to show for a fault of ours, whose traceback is in the file ``path``."""
    text = " ".join(str(error).split()) or "no message"
    return UnexpectedError(
        f"unexpected {type(error).__name__}: {text[:300]}. This is a fault of the program; "
        f"please report it with {path}"
    )


def _stopped(how: str) -> str:
    return f"{how}; what is finished is kept, the same command with the same folders continues"


def _keep_traceback(error: BaseException) -> Path:
    with tempfile.NamedTemporaryFile(
        "w", prefix="bagau-crash-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.writelines(traceback.format_exception(error))
    return Path(file.name)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end the process by an exception, so that open files are closed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: whoever runs it handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

"""How every command ends: errors become one message and an exit code, signals a clean stop."""

import io
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from bagau_bids.disk import full_disk_message, is_full_disk
from bagau_bids.errors import EXIT_BUILD, EXIT_USAGE, BagauError
from bagau_bids.processes import PARENT_VARIABLE, end_with_parent, keep_folder_off_path

NO_HOME = "/nonexistent"  # as Debian has it for users without a home folder
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM
EXIT_PIPE = 128 + signal.SIGPIPE


class UnexpectedError(BagauError):
    """A fault of the program itself; its traceback is kept in a file that the message names."""

    exit_code = EXIT_BUILD


class Terminated(BaseException):
    """The process was asked to end, as SLURM does at the time limit."""


class StopRequest:
    """Remembers that a signal asked the process to stop.

    The signal's exception may be swallowed on its way up: nipype takes any exception inside a
    node for the node's failure and goes on with the next. Who is called between the steps
    therefore calls `check`.
    """

    def __init__(self) -> None:
        self._exception: BaseException | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal and raise its exception."""
        self._exception = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
        raise self._exception

    def check(self) -> None:
        """Raise the exception of the signal that came, if one came."""
        if self._exception is not None:
            raise self._exception


def exit_code_of(program: str, action: Callable[[StopRequest], int]) -> int:
    """Carry a command out and return its exit code; say on stderr what went wrong, in one message.

    Parameters
    ----------
    program
        Name that stands before the message.
    action
        The command; returns its exit code. It is handed what knows whether to stop.

    Returns
    -------
    int
        That of the action; that of a `BagauError`; 2 for a command line argparse refused;
        130 after SIGINT, 143 after SIGTERM and 141 where nobody reads the output any more, as a
        shell reports them; 70 for a fault of ours,
        whose traceback is written to a file.
    """
    _prepare_process()
    try:
        with _signals_raise() as stop:
            _end_with_launcher()
            return action(stop)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_USAGE if ended.code else 0
    except BagauError as error:
        message, code = str(error), error.exit_code
    except KeyboardInterrupt:
        message, code = _stopped("interrupted"), EXIT_INTERRUPTED
    except Terminated:
        message, code = _stopped("asked to end"), EXIT_TERMINATED
    except BrokenPipeError:
        # Who reads the output went away. Python would complain once more as it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message, code = _stopped("nobody reads the output any more"), EXIT_PIPE
    except Exception as error:
        unexpected = describe_unexpected(error, _keep_traceback(error))
        message, code = str(unexpected), unexpected.exit_code
    print(f"{program}: {message}", file=sys.stderr, flush=True)
    return code


def _prepare_process() -> None:
    """Set what this process and its children read, however it was started.

    A home folder that is not there is asked for by libraries when they are imported; that it
    cannot be written does not matter to them. Names that are no UTF-8 are shown by their bytes.
    """
    keep_folder_off_path()
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = NO_HOME
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end_with_launcher() -> None:
    """Be asked to end when the command ends that started this one, if one did and says so."""
    launcher = os.environ.pop(PARENT_VARIABLE, "")
    if launcher.isdigit():
        end_with_parent(int(launcher), signal.SIGTERM)


def describe_unexpected(error: BaseException, path: Path) -> UnexpectedError:
    """Return the error to show for a fault of ours, whose traceback is in the file ``path``.

    A disk that is full, or a place that is closed to us, is no fault of ours, but may be found
    anywhere.
    """
    if is_full_disk(error):
        name = getattr(error, "filename", None)
        folders = [Path(os.fsdecode(name)).parent] if name else []
        return UnexpectedError(full_disk_message([*folders, path.parent, Path.cwd()]))
    if isinstance(error, PermissionError) and error.filename:
        return UnexpectedError(
            f"{os.fsdecode(error.filename)}: {error.strerror}; expected a place that may be read "
            "and written: change its permissions, or name another"
        )
    text = " ".join(str(error).split()) or "no message"
    return UnexpectedError(
        f"unexpected {type(error).__name__}: {text[:300]}. This is a fault of the program; "
        f"please report it with {path}"
    )


def _stopped(how: str) -> str:
    return f"{how}; what is finished is kept, the same command with the same folders continues"


def _keep_traceback(error: BaseException) -> Path:
    """Write a traceback to a file, on stderr where there is no room for one."""
    lines = traceback.format_exception(error)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="bagau-crash-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.writelines(lines)
    except OSError:
        sys.stderr.writelines(lines)
        return Path("/dev/stderr")
    return Path(file.name)


@contextmanager
def _signals_raise() -> Iterator[StopRequest]:
    """Let SIGINT and SIGTERM end the process by an exception, so that open files are closed."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # whoever runs the main thread handles signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

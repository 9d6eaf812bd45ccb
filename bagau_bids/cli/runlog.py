"""The log of a run: a file in the output, the frozen configuration beside it, lines on stderr."""

import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids import __version__
from bagau_bids.cli.failure import Terminated, describe_unexpected
from bagau_bids.config import Config, as_plain
from bagau_bids.errors import BagauError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

LOG_NAME = "bagau-bids.log"
CONFIG_NAME = "bagau.toml"
_PACKAGES = ("torch", "nipype", "pybids", "nibabel", "antspyx", "itk-elastix", "numpy", "scipy")
log = logging.getLogger(__name__)


def console_level(verbose: int) -> int:
    """Return the logging level shown on the terminal for a count of ``-v``."""
    return max(25 - 5 * verbose, logging.DEBUG)


@contextmanager
def run_log(config: Config, console: "Console") -> Iterator[Path]:
    """Log a run to a file in its output, as long as the context lasts.

    Errors that leave the context are logged; one that is a fault of the program leaves its
    traceback in the file only.

    Parameters
    ----------
    config
        The run; saved as TOML beside the log.
    console
        Where warnings, and more with ``-v``, are shown.

    Yields
    ------
    Path
        The log file.

    Raises
    ------
    UsageError
        If the output folder cannot be written.
    UnexpectedError
        In place of any error that is no `BagauError`.
    """
    path = config.log_dir / LOG_NAME
    try:
        config.log_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, config.log_dir / CONFIG_NAME)
        handlers = [
            _file_handler(path, config.execution.verbose),
            _console_handler(config, console),
        ]
    except OSError as error:
        raise UsageError(
            f"OUTPUT_DIR {config.output_dir} cannot be written: {error}; choose another, or free "
            "space and rights"
        ) from error
    with _installed(handlers):
        _log_header(config)
        try:
            yield path
        except BagauError as error:
            _to_file_only(logging.ERROR, str(error))
            raise
        except (KeyboardInterrupt, Terminated) as error:
            _to_file_only(logging.ERROR, f"stopped by {type(error).__name__}")
            raise
        except Exception as error:
            _to_file_only(logging.CRITICAL, "unexpected error", exc_info=True)
            raise describe_unexpected(error, path) from error


def save_config(config: Config, path: Path) -> None:
    """Write the frozen configuration as TOML; a field that was not set is not named."""
    import tomli_w

    path.write_text(
        f"# bagau-bids {__version__}\n" + tomli_w.dumps(as_plain(config)),
        encoding="utf-8",
        errors="backslashreplace",
    )


def _to_file_only(level: int, message: str, *, exc_info: bool = False) -> None:
    log.log(level, message, exc_info=exc_info, extra={"file_only": True})


def _file_handler(path: Path, verbose: int) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setLevel(min(logging.INFO, console_level(verbose)))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(name)s: %(message)s"))
    return handler


def _console_handler(config: Config, console: "Console") -> logging.Handler:
    handler = _ConsoleHandler(console)
    handler.setLevel(console_level(config.execution.verbose))
    others_level = (logging.CRITICAL, logging.WARNING, logging.DEBUG)[
        min(config.execution.verbose, 2)
    ]
    process = os.getpid()

    def ours(record: logging.LogRecord) -> bool:
        if getattr(record, "file_only", False) or os.getpid() != process:
            return False  # a forked worker must not touch the terminal's lock
        return record.name.startswith("bagau_bids") or record.levelno >= others_level

    handler.addFilter(ours)
    return handler


class _ConsoleHandler(logging.Handler):
    """Shows records on a rich console, above the progress display where there is one."""

    def __init__(self, console: "Console") -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line: the level, and the message as it is."""
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _installed(handlers: list[logging.Handler]) -> Iterator[None]:
    """Attach handlers to the root logger and take them off again."""
    root = logging.getLogger()
    nipype = logging.getLogger("nipype")
    silent = logging.NullHandler()  # keeps nipype from adding its own, which prints to stdout
    level = root.level
    for handler in handlers:
        root.addHandler(handler)
    nipype.addHandler(silent)
    root.setLevel(min(handler.level for handler in handlers))
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        nipype.removeHandler(silent)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _log_header(config: Config) -> None:
    log.info("bagau-bids %s, run %s", __version__, config.run_uuid)
    log.info("command: %s", shlex.join(sys.argv))
    log.info("Python %s on %s", platform.python_version(), platform.platform())
    log.info("packages: %s", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"

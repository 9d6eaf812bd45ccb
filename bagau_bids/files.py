"""The ground floor: files written whole or not at all, read into types, and locked.

Files are written under a temporary name in their own folder and renamed, so several processes may
write one folder; a file whose content is already right is left alone, so its time stamp tells when
a result last changed.
"""

import fcntl
import hashlib
import json
import logging
import math
import os
import platform
import secrets
import shutil
import time
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import filelock
import msgspec

from bagau_bids.errors import BagauError, MissingResourceError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

log = logging.getLogger(__name__)
READ_SIZE_BYTES = 1 << 20
IMAGE_ENDING = ".nii.gz"
LEFTOVER_S = 86400  # after which a temporary file of another machine is of no process any more
# What is raised where a file of arrays is truncated or damaged: in its archive, or in a header.
DAMAGE = (
    *(OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error),
    *(ValueError, SyntaxError, tokenize.TokenError, OverflowError),
)
Content = TypeVar("Content")


def read_json(
    path: Path, kind: type[Content], hint: str, error: type[BagauError] = UsageError
) -> Content:
    """Read a JSON file into a type.

    Parameters
    ----------
    path : Path
    kind : type
        What it must hold: a `msgspec.Struct`, ``dict[str, float]``, ...
    hint : str
        What was expected and what to do; ends the message.
    error : subclass of BagauError
        Raised where the file cannot be read, is no JSON, or does not hold the type; the message
        names the file and the field.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as trouble:
        raise error(f"{path}: cannot be read ({trouble.strerror}); {hint}") from trouble
    except ValueError as trouble:
        raise error(f"{path}: {trouble}; {hint}") from trouble


def read_shipped(name: str, kind: type[Content]) -> Content:
    """Read a JSON file of ``data/`` into a type; see `read_json`."""
    path = Path(str(resources.files("bagau_bids.data")), name)
    return read_json(
        path, kind, "it ships with the package: install bagau-bids again", MissingResourceError
    )


def read_arrays(path: Path, names: Sequence[str], hint: str) -> "dict[str, NDArray]":
    """Read all arrays of an ``.npz`` file.

    Parameters
    ----------
    path : Path
    names : sequence of str
        Arrays that must be there; further ones may be.
    hint : str
        What was expected and what to do; ends the message.

    Raises
    ------
    UsageError
        If the file cannot be read, is damaged, or lacks an array.
    """
    from numpy.lib import format as npy  # this module is read where there is nothing to compute

    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as stream:
                    arrays[member.removesuffix(".npy")] = npy.read_array(stream)
    except DAMAGE as trouble:
        raise UsageError(f"{path}: cannot be read ({trouble}), {hint}") from trouble
    require_arrays(path, arrays, names, hint)
    return arrays


def require_arrays(
    path: Path, arrays: "dict[str, NDArray]", names: Sequence[str], hint: str
) -> None:
    """Refuse arrays of a file that lack some; see `read_arrays`."""
    if missing := [name for name in names if name not in arrays]:
        found = ", ".join(arrays) or "none"
        raise UsageError(f"{path}: found no {', '.join(missing)} in its arrays ({found}), {hint}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file in one step, by a temporary name in its own folder.

    Parameters
    ----------
    path : Path
        Its folder is made where missing.

    Yields
    ------
    Path
        To write to; renamed to `path` when the block ends well, removed when it does not. It
        ends in ``.nii.gz`` where `path` does, by which writers of images know what to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file's own name may be as long as the file system allows: a part would not fit.
    target = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:8]
    _remove_leftovers(path.parent, target)
    unique = f".{target}-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    ending = IMAGE_ENDING if path.name.endswith(IMAGE_ENDING) else ""
    temporary = path.with_name(unique + ending)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(folder: Path, target: str) -> None:
    """Remove what processes left that were killed while they wrote a file of this name."""
    for path in folder.glob(f".{target}-*.tmp*"):
        machine, process = path.name.split("-")[1:3]
        with suppress(OSError, ValueError):
            gone = (
                not Path("/proc", str(int(process))).exists()
                if machine == _machine()
                else time.time() - path.stat().st_mtime > LEFTOVER_S
            )
            if gone:
                path.unlink()


@cache
def _machine() -> str:
    """Name where a process number means something: a start of a machine, a container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        boot, space = platform.node(), 0
    return hashlib.sha256(f"{boot}{space}".encode()).hexdigest()[:8]


def write_bytes(path: Path, content: bytes) -> bool:
    """Write a file in one step, unless it holds this content already.

    Parameters
    ----------
    path : Path
        Its folder is made where missing.
    content : bytes
        The whole content.

    Returns
    -------
    bool
        Whether the file was written.
    """
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return False
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return True


def write_text(path: Path, text: str) -> bool:
    r"""Write text (UTF-8) in one step, unless the file holds it already; see `write_bytes`.

    Bytes of file names that are no UTF-8 are written as escapes, such as ``\udcf6``.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Mapping[str, Any] | msgspec.Struct) -> bool:
    """Write JSON in one step, unless the file holds it already; see `write_bytes`.

    Numbers that JSON has no word for (NaN, infinity) are written as ``null``.
    """
    return write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, table: "pd.DataFrame") -> bool:
    """Write a BIDS table in one step, unless the file holds it already; see `write_bytes`.

    Tab-separated, missing values as ``n/a``, floating-point numbers with eight significant digits.
    """
    text = table.to_csv(
        sep="\t", index=False, na_rep="n/a", float_format="%.8g", lineterminator="\n"
    )
    return write_text(path, text)


def remove_stale(paths: Iterable[Path], why: str) -> None:
    """Remove results that an earlier run left and this one would not make, and log it.

    Parameters
    ----------
    paths : iterable of Path
        Those that are not there are passed over.
    why : str
        What is not so any more, for the log.
    """
    for path in paths:
        if path.is_file():
            path.unlink()
            log.info("%s: removed, since %s", path, why)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def same_content(first: Path, second: Path) -> bool:
    """Tell whether a second file is there and holds the same bytes; no more is read than tells."""
    if not second.is_file() or first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as other:
        while block := one.read(READ_SIZE_BYTES):
            if block != other.read(READ_SIZE_BYTES):
                return False
    return True


def copy_file(source: Path, path: Path) -> bool:
    """Copy a file in one step, unless its copy is there already; see `write_bytes`."""
    if same_content(source, path):
        return False
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
    return True


def place_file(source: Path, path: Path, how: str) -> bool:
    """Give a file a further place in one step, unless it is there already.

    Parameters
    ----------
    source : Path
        Where the content is; links in it are followed to the file itself.
    path : Path
        Its folder is made where missing.
    how : {'hard', 'symlink', 'copy'}
        A hard link, a symbolic link with a relative target, or a copy.

    Returns
    -------
    bool
        Whether something was written.

    Raises
    ------
    OSError
        If the file system refuses it, such as a hard link to another file system.
    """
    if how == "copy":
        return copy_file(source, path)
    source = source.resolve()
    target = os.path.relpath(source, path.parent.resolve())
    if path.is_symlink() and how == "symlink" and os.readlink(path) == target:
        return False
    # A rename onto a hard link of the same file does nothing and would leave the other name.
    if how == "hard" and path.exists() and not path.is_symlink() and path.samefile(source):
        return False
    with replacing(path) as temporary:
        if how == "symlink":
            temporary.symlink_to(target)
        else:
            temporary.hardlink_to(source)
    return True


def claim_origin(path: Path, origin: Mapping[str, Any]) -> None:
    """Note in a file what its folder is made from, so that nothing else is mixed into it.

    Parameters
    ----------
    path : Path
        The file; its folder is made where missing.
    origin : mapping
        What decides the content, as JSON can hold it.

    Raises
    ------
    UsageError
        If the file is there and names another origin.
    """
    if not path.is_file():
        write_json(path, origin)
        return
    found = read_json(path, dict[str, Any], "name another folder")
    other = sorted(key for key in {*found, *origin} if found.get(key) != origin.get(key))
    if other:
        raise UsageError(
            f"{path}: what is there was made with another {', '.join(other)}, expected the same "
            "as now; ask for the same, or name another folder"
        )


def _plain(value: Any) -> Any:
    """Reduce structures, numpy scalars, arrays, paths and tuples to what JSON knows."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value, enc_hook=_plain)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def one_at_a_time(path: Path, patience_s: float = -1) -> Iterator[bool]:
    """Let one process at a time into the block, also of several machines with one file system.

    Parameters
    ----------
    path : Path
        Empty file that stands for the lock; it and its folder are made where missing, and stay. On
        a file system without locks nobody waits.
    patience_s : float
        How long to wait at most; negative: as long as it takes.

    Yields
    ------
    bool
        Whether nobody else is in the block; False only when patience ran out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()
    lock = filelock.FileLock(path, timeout=patience_s, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except OSError:
        log.debug("%s: the file system has no locks", path)
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def together(path: Path) -> Iterator[None]:
    """Hold a lock with others as long as the block lasts; `one_at_a_time` waits for all of them.

    The filelock library shares locks by a database beside the file, or by files that outlive who
    is killed; the kernel's own lock goes with the process.

    Parameters
    ----------
    path : Path
        File that stands for the lock. Where it is missing, or the file system has no locks,
        nothing is held.
    """
    if not path.exists():
        yield
        return
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
        except OSError:
            log.debug("%s: the file system has no locks", path)
        yield

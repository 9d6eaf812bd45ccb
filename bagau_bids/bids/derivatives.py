"""Names of what is written, and writing it so that nothing half-written is ever seen.

The names are data (``data/derivatives.json``). Files are written under a temporary name in their
own folder and renamed, so several processes may write one output folder; a file whose content
is already right is left alone, so its time stamp tells when a result last changed.
"""

import hashlib
import json
import logging
import math
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from bagau_bids.bids.annex import broken_link
from bagau_bids.errors import InputImageError, UsageError

log = logging.getLogger(__name__)
READ_SIZE_BYTES = 1 << 20
LEFTOVER_S = 86400  # after which a temporary file of another machine is of no process any more


@cache
def _catalogue() -> dict[str, Any]:
    text = files("bagau_bids.data").joinpath("derivatives.json").read_text(encoding="utf-8")
    return json.loads(text)


def catalogue_of(kind: str) -> Any:
    """One part of ``data/derivatives.json`` that belongs to no scan, e.g. ``bidsignore``."""
    return _catalogue()[kind]


def source_stem(entities: Mapping[str, Any]) -> str:
    """First part of the name of everything that is made from one scan.

    Parameters
    ----------
    entities : mapping
        Entities of the source file under their short (``ses``) or long (``session``) names;
        what is no entity of a file name (suffix, extension, datatype) is passed over.

    Returns
    -------
    str
        All entities of the source in the order of the specification, e.g.
        ``sub-01_ses-2_acq-3D_run-1``.
    """
    parts = []
    for short, long in _catalogue()["entities"]:
        value = entities.get(short, entities.get(long))
        if value is not None:
            parts.append(f"{short}-{value}")
    return "_".join(parts)


def source_folder(entities: Mapping[str, Any]) -> Path:
    """Folder of a scan's derivatives below the output folder: ``sub-X[/ses-Y]/anat``."""
    session = entities.get("ses", entities.get("session"))
    folder = Path(f"sub-{entities.get('sub', entities.get('subject'))}")
    return folder / f"ses-{session}" / "anat" if session is not None else folder / "anat"


def derivative_names() -> tuple[str, ...]:
    """Names under which `derivative_path` knows the files made from one scan."""
    return tuple(_catalogue()["files"])


def derivative_path(
    output_dir: str | Path, entities: Mapping[str, Any], name: str, *, template: str = ""
) -> Path:
    """Where one file made from a scan lies.

    Parameters
    ----------
    output_dir : path
        Root of the derivative data set.
    entities : mapping
        Entities of the source scan, as for `source_stem`.
    name : str
        One of `derivative_names`, e.g. ``wmh_mask``.
    template : str
        Name of the template, for the files whose name holds it.

    Returns
    -------
    Path

    Raises
    ------
    KeyError
        If the name is not in the catalogue.
    ValueError
        If the file's name holds the template and none is given.
    """
    described = _catalogue()["files"][name]
    pattern = described["name"]
    if "{template}" in pattern and not template:
        raise ValueError(f"the name of {name} holds a template: {pattern}")
    filename = pattern.format(source=source_stem(entities), template=template)
    folder = source_folder(entities)
    if "folder" in described:  # beside the anat of all sessions, as figures are
        folder = Path(folder.parts[0]) / described["folder"]
    return Path(output_dir) / folder / filename


def static_sidecar(name: str) -> dict[str, Any]:
    """Metadata that are the same for every file of one kind; an empty one for a table."""
    return dict(_catalogue()["files"][name].get("sidecar", {}))


def sidecar_path(path: Path) -> Path:
    """Path of the JSON file beside an image, transform or table."""
    name = path.name
    for extension in (".nii.gz", ".nii", ".h5", ".txt", ".tsv"):
        if name.endswith(extension):
            return path.with_name(name.removesuffix(extension) + ".json")
    raise ValueError(f"{path}: no sidecar is known for this kind of file")


def bids_uri(dataset: str, path: str | Path) -> str:
    """BIDS URI of a file: ``bids:<dataset>:<path>``; an empty data set is the current one."""
    return f"bids:{dataset}:{Path(path).as_posix()}"


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
        To write to; renamed to `path` when the block ends well, removed when it does not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file's own name may be as long as the file system allows: a part would not fit.
    target = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:8]
    _remove_leftovers(path.parent, target)
    temporary = path.with_name(f".{target}-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(folder: Path, target: str) -> None:
    """Remove what processes left that were killed while they wrote a file of this name."""
    for path in folder.glob(f".{target}-*.tmp"):
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


def longest_name(entities: Mapping[str, Any], template: str) -> str:
    """Longest name of a file that is made from one scan, in bytes; sidecars are shorter."""
    names = (derivative_path("", entities, name, template=template) for name in derivative_names())
    return max((path.name for path in names), key=lambda name: len(os.fsencode(name)))


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


def write_json(path: Path, content: Mapping[str, Any]) -> bool:
    """Write JSON in one step, unless the file holds it already; see `write_bytes`.

    Numbers that JSON has no word for (NaN, infinity) are written as ``null``.
    """
    return write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, table: pd.DataFrame) -> bool:
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


def copy_file(source: Path, path: Path) -> bool:
    """Copy a file in one step, unless its copy is there already; see `write_bytes`."""
    if _same_content(source, path):
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
    found = json.loads(path.read_text(encoding="utf-8"))
    other = sorted(key for key in {*found, *origin} if found.get(key) != origin.get(key))
    if other:
        raise UsageError(
            f"{path}: what is there was made with another {', '.join(other)}, expected the same "
            "as now; ask for the same, or name another folder"
        )


def _same_content(first: Path, second: Path) -> bool:
    if not second.is_file() or first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as other:
        while block := one.read(READ_SIZE_BYTES):
            if block != other.read(READ_SIZE_BYTES):
                return False
    return True


def _plain(value: Any) -> Any:
    """Reduce numpy scalars, arrays, paths and tuples to what JSON knows."""
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


def find_brain_mask(derivatives: Mapping[str, Path], entities: Mapping[str, Any]) -> Path | None:
    """Look for a brain mask of one FLAIR in other derivative data sets.

    Parameters
    ----------
    derivatives : mapping of str to Path
        Roots of the data sets under their names, the preferred one first.
    entities : mapping
        Entities of the FLAIR, as for `source_stem`; the mask must carry all of them.

    Returns
    -------
    Path or None
        ``[_space-orig]_label-brain_mask`` or ``[_space-orig]_desc-brain_mask`` of the same scan;
        None where no data set has one.

    Raises
    ------
    InputImageError
        If one data set holds several that fit, or a link to one that was not fetched.
    """
    stem, folder = source_stem(entities), source_folder(entities)
    names = [
        f"{stem}{space}_{kind}-brain_mask{extension}"
        for space in ("_space-orig", "")
        for kind in ("label", "desc")
        for extension in (".nii.gz", ".nii")
    ]
    for root in derivatives.values():
        found = [path for name in names if os.path.lexists(path := root / folder / name)]
        if len(found) > 1:
            raise InputImageError(
                f"{root}: holds several brain masks of {stem}: "
                f"{', '.join(path.name for path in found)}; expected one: leave out the others"
            )
        if found and (reason := broken_link(found[0])):
            raise InputImageError(reason)
        if found:
            return found[0]
    return None

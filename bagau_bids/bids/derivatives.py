"""Where what is made from a scan lies: its names are data (``data/derivatives.json``)."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bagau_bids.bids.annex import broken_link
from bagau_bids.errors import InputImageError
from bagau_bids.files import read_shipped


@cache
def _catalogue() -> dict[str, Any]:
    return read_shipped("derivatives.json", dict[str, Any])


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


def longest_name(entities: Mapping[str, Any], template: str) -> str:
    """Longest name of a file that is made from one scan, in bytes; sidecars are shorter."""
    names = (derivative_path("", entities, name, template=template) for name in derivative_names())
    return max((path.name for path in names), key=lambda name: len(os.fsencode(name)))


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

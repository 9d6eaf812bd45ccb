"""What is made from a scan and where it lies: a catalogue (``data/derivatives.json``)."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from bagau_bids.files import read_shipped


class Derivative(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of file that is made from a scan, or from all of them.

    Attributes
    ----------
    name
        Pattern of its file name; ``{source}`` and ``{template}`` are filled in.
    kind
        ``image`` of the scan's own grid, ``preview`` of one, to look at, ``template image``,
        ``transform``, ``table`` or ``record``.
    step
        The step of a scan whose output it is; ``group`` for what comes after all scans.
    description
        What it holds.
    dtype
        Type of an image's values.
    columns
        Table of ``data/tables`` that describes its columns.
    figures
        Likewise its rows.
    optional
        Whether a complete scan may be without it.
    folder
        Folder in that of the participant; empty: beside the scan, in ``anat``.
    metadata
        What its sidecar says whatever the scan.
    """

    name: str
    kind: Literal["image", "preview", "template image", "transform", "table", "record"]
    step: str
    description: str
    dtype: Literal["", "uint8", "int32", "float32"] = ""
    columns: str = ""
    figures: str = ""
    optional: bool = False
    folder: str = ""
    metadata: dict[str, Any] = {}

    @property
    def sidecar(self) -> dict[str, Any]:
        """Metadata that are the same for every file of this kind."""
        return {**self.metadata, "Description": self.description}


class Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is written into the output folder under a name of BIDS.

    Attributes
    ----------
    entities
        Short and long name of each entity, in the order of a file name.
    files
        What is made from each scan.
    group
        What is made from all scans.
    bidsignore
        Patterns of what a validator does not know.
    descriptions
        Meaning by label of the entity ``desc``.
    """

    entities: tuple[tuple[str, str], ...]
    files: dict[str, Derivative]
    group: dict[str, Derivative]
    bidsignore: tuple[str, ...]
    descriptions: dict[str, str]


@cache
def catalogue() -> Catalogue:
    """Return what this program writes."""
    return read_shipped("derivatives.json", Catalogue)


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
    for short, long in catalogue().entities:
        value = entities.get(short, entities.get(long))
        if value is not None:
            parts.append(f"{short}-{value}")
    return "_".join(parts)


def source_folder(entities: Mapping[str, Any]) -> Path:
    """Folder of a scan's derivatives below the output folder: ``sub-X[/ses-Y]/anat``."""
    session = entities.get("ses", entities.get("session"))
    folder = Path(f"sub-{entities.get('sub', entities.get('subject'))}")
    return folder / f"ses-{session}" / "anat" if session is not None else folder / "anat"


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
        One of the catalogue's files, e.g. ``wmh_mask``.
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
    described = catalogue().files[name]
    if "{template}" in described.name and not template:
        raise ValueError(f"the name of {name} holds a template: {described.name}")
    filename = described.name.format(source=source_stem(entities), template=template)
    folder = source_folder(entities)
    if described.folder:  # beside the anat of all sessions, as figures are
        folder = Path(folder.parts[0]) / described.folder
    return Path(output_dir) / folder / filename


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
    stem = source_stem(entities)
    names = (
        described.name.format(source=stem, template=template)
        for described in catalogue().files.values()
    )
    return max(names, key=lambda name: len(os.fsencode(name)))

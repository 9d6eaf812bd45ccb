"""What became of every file that was found: a table, and the check that it tells the truth."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bagau_bids.bids.derivatives import sidecar_path
from bagau_bids.datasets.cases import Collection, Placement, sha256_of

MANIFEST = Path("sourcedata", "import.tsv")
PLACED = "placed"
COLUMNS = {
    "source": {"Description": "File as it was found, relative to the folder of the import"},
    "status": {
        "Description": "What became of it",
        "Levels": {PLACED: "Part of this data set", "left out": "Not part of it, see reason"},
    },
    "path": {"Description": "Its place in this data set"},
    "how": {"Description": "Hard link, symbolic link (symlink) or copy"},
    "size": {"Description": "Size of the content", "Units": "byte"},
    "sha256": {"Description": "SHA-256 of the content"},
    "reason": {"Description": "Why it was left out"},
}


def manifest_table(collection: Collection, digests: Mapping[Path, str], how: str) -> pd.DataFrame:
    """List every file of a collection, placed or not.

    Parameters
    ----------
    collection : Collection
        As it was imported.
    digests : mapping of Path to str
        SHA-256 of the files that were placed.
    how : {'hard', 'symlink', 'copy'}

    Returns
    -------
    DataFrame
        Columns as `COLUMNS`; a missing value where one has no meaning.
    """
    rows: list[tuple[Any, ...]] = [
        (one.source, PLACED, one.target.as_posix(), one.how(how), digests[one.source], None)
        for one in all_placements(collection)
    ]
    reasons: dict[Path, list[str]] = {}
    for failure in collection.failures:
        for path in failure.sources:
            reasons.setdefault(path, []).append(failure.reason)
    for path, reason in collection.ignored.items():
        reasons.setdefault(path, []).append(reason)
    rows += [(path, "left out", None, None, None, "; ".join(why)) for path, why in reasons.items()]
    table = pd.DataFrame(rows, columns=["source", "status", "path", "how", "sha256", "reason"])
    sizes = [path.stat().st_size if path.is_file() else None for path in table["source"]]
    table["size"] = pd.array(sizes, dtype="Int64")
    table["source"] = [os.path.relpath(path, collection.root) for path in table["source"]]
    return table.sort_values(["source", "status"], ignore_index=True)[list(COLUMNS)]


def all_placements(collection: Collection) -> list[Placement]:
    """Every file of a collection that has a place in the data set."""
    return [
        *(one for case in collection.cases for one in case.placements),
        *collection.extras,
    ]


def find_losses(out: Path, collection: Collection, table: pd.DataFrame) -> list[str]:
    """Compare a manifest with what was found and with what is on disk.

    Parameters
    ----------
    out : Path
        Root of the data set.
    collection : Collection
        What was found.
    table : DataFrame
        Its manifest.

    Returns
    -------
    list of str
        What is wrong: files found but not listed, places taken twice, missing files, copies
        that differ. Empty where all is well.
    """
    found = {os.path.relpath(path, collection.root) for path in collection.sources}
    problems = [
        f"{name}: found, but not in {MANIFEST}" for name in sorted(found - set(table["source"]))
    ]
    placed = table[table["status"] == PLACED]
    twice = sorted(placed["path"][placed["path"].duplicated()])
    problems += [f"{out / name}: place of several files" for name in twice]
    for row in placed.itertuples():
        path = out / str(row.path)
        if not path.is_file() or path.stat().st_size != row.size:
            problems.append(f"{path}: is not {row.source}, {row.size} bytes were expected")
        elif row.how == "copy" and sha256_of(path) != row.sha256:
            problems.append(f"{path}: differs from {row.source}")
    return problems


def find_strangers(out: Path, collection: Collection, documents: Iterable[Path]) -> list[Path]:
    """List the files of a data set that do not come from an import.

    Parameters
    ----------
    out : Path
        Root of the data set.
    collection : Collection
        What is imported.
    documents : iterable of Path
        What is written besides, relative to `out`.

    Returns
    -------
    list of Path
        Relative to `out`, sorted. Only folders that an import fills are looked at: those of
        participants, of masks and of the challenge; other derivatives may lie beside them.
    """
    placements = all_placements(collection)
    described = [sidecar_path(one.target) for one in placements if one.sidecar is not None]
    expected = {*documents, *described, *(one.target for one in placements)}
    folders = [
        *out.glob("sub-*"),
        *out.glob("derivatives/manual*/sub-*"),
        *out.glob("derivatives/challenge/sub-*"),
    ]
    there = (path for folder in folders for path in folder.rglob("*") if not path.is_dir())
    return sorted({path.relative_to(out) for path in there} - expected)

"""Write an imported collection as a BIDS data set with its manual masks as derivatives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bagau_bids import __version__
from bagau_bids.bids.derivatives import sidecar_path
from bagau_bids.bids.description import BIDS_VERSION
from bagau_bids.datasets.cases import Collection, Failure, Placement
from bagau_bids.datasets.manifest import (
    COLUMNS,
    MANIFEST,
    PLACED,
    all_placements,
    find_losses,
    find_strangers,
    manifest_table,
)
from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.files import claim_origin, place_file, write_json, write_table, write_text

HOW = ("hard", "symlink", "copy")
DESCRIPTION = Path("dataset_description.json")
CLAIM = ".bagau-import.json"
PARTICIPANT_TEXT = {"Description": "Participant"}
README = """# {name}

Made by `{command}` (bagau-bids {version}). The scans and masks are the files as they were found,
unchanged; the names and this description are new.

- `derivatives/manual`: the manual masks, named `*_space-orig_label-WMH_mask`, on the grid of their
  FLAIR.
- `participants.tsv`: what is known of the participants.
- `sourcedata/import.tsv`: what became of every file that was found, with its SHA-256.

Licence: {licence}. How to acknowledge: {acknowledge}
"""


@dataclass(frozen=True)
class DatasetTexts:
    """What is said of a data set as a whole.

    Attributes
    ----------
    command : str
        Command that makes it.
    options : mapping
        What decides its content besides the files; another value must not go into one folder.
    description : mapping
        Fields of ``dataset_description.json``.
    columns : mapping
        Fields of ``participants.json``.
    derivatives : mapping
        Description of a derivative data set by the name of its folder.
    """

    command: str
    options: Mapping[str, Any]
    description: Mapping[str, Any]
    columns: Mapping[str, Any]
    derivatives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What an import did: cases, files placed and left out, and what failed."""

    cases: int
    placed: int
    left_out: int
    failures: tuple[Failure, ...]


def write_dataset(
    out: Path,
    collection: Collection,
    digests: Mapping[Path, str],
    texts: DatasetTexts,
    *,
    how: str = "hard",
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Write checked cases; an import that was stopped goes on.

    Each file appears in one step, the FLAIR of a case after everything else of it, and
    ``dataset_description.json`` and the manifest when all is in place.

    Parameters
    ----------
    out : Path
        Folder of the data set: new, empty, or one of the same import.
    collection : Collection
        What `check_cases` left.
    digests : mapping of Path to str
        SHA-256 of the files.
    texts : DatasetTexts
    how : {'hard', 'symlink', 'copy'}
        Hard links, symbolic links with relative targets, or copies.
    progress : callable
        Gets one line a case.

    Returns
    -------
    Report

    Raises
    ------
    UsageError
        If the folder holds something else, or the links cannot be made.
    ProcessingError
        If at the end a file is missing or another than the manifest says.
    """
    _make_folder(out)
    if how != "copy":
        _try_link(out, collection.cases[0].flair.source, how)
    options = {**texts.options, "source": str(collection.root.resolve()), "files": how}
    claim_origin(out / CLAIM, {"command": texts.command, **options})
    for path in out.rglob(".*.tmp*"):
        path.unlink()  # left by an import that was killed
    strangers = find_strangers(out, collection, _documents(collection, texts))
    if strangers:
        raise UsageError(
            f"{out}: holds {len(strangers)} files that this import does not make, the first "
            f"{strangers[0]}; expected nothing else: import into a new folder"
        )
    cases, extras, failures = [], [], []
    for case in collection.cases:
        reason = _place(out, case.placements, how)
        if reason:
            failures.append(Failure(case.name, reason, case.sources))
        else:
            cases.append(case)
            progress(f"{case.name}: {case.flair.target.name}, {len(case.placements)} files")
    for placement in collection.extras:
        reason = _place(out, [placement], how)
        if reason:
            failures.append(Failure(placement.source.name, reason, (placement.source,)))
        else:
            extras.append(placement)
    written = replace(
        collection,
        cases=tuple(cases),
        extras=tuple(extras),
        failures=(*collection.failures, *failures),
    )
    return _finish(out, written, digests, texts, how)


def _make_folder(out: Path) -> None:
    """Make the folder of the data set, or see that it is one to go on with."""
    used = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if used and not (out / CLAIM).is_file():
        raise UsageError(
            f"{out}: is not empty and no data set of `bagau import`; expected a new folder, or "
            "one of the same import to go on with: name another"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{out}: cannot be made ({error.strerror}); expected a place to write to: name "
            "another folder"
        ) from error


def _try_link(out: Path, source: Path, how: str) -> None:
    """Make one link for a trial, so that what the file system refuses is said at once."""
    trial = out / ".trial"
    try:
        place_file(source, trial, how)
    except OSError as error:
        if not any(out.iterdir()):
            out.rmdir()
        raise UsageError(
            f"{out}: a {how} link to {source} cannot be made ({error.strerror}); expected a "
            "folder on the same file system, which allows links: choose --files symlink or "
            "--files copy"
        ) from error
    finally:
        trial.unlink(missing_ok=True)


def _place(out: Path, placements: Sequence[Placement], how: str) -> str:
    """Place files with their sidecars, all or none; say why where it is none."""
    try:
        for placement in placements:
            path = out / placement.target
            if placement.sidecar is not None:
                write_json(sidecar_path(path), placement.sidecar)
            place_file(placement.source, path, placement.how(how))
    except OSError as error:
        for placement in placements:
            path = out / placement.target
            path.unlink(missing_ok=True)
            if placement.sidecar is not None:
                sidecar_path(path).unlink(missing_ok=True)
        return f"cannot be written into {out} ({error.strerror}): check its space and rights"
    return ""


def _finish(
    out: Path,
    collection: Collection,
    digests: Mapping[Path, str],
    texts: DatasetTexts,
    how: str,
) -> Report:
    """Write the tables and check the whole; the description comes last: it is complete then."""
    table = manifest_table(collection, digests, how)
    documents = {**_documents(collection, texts), MANIFEST: table}
    description = documents.pop(DESCRIPTION)
    for path, content in documents.items():
        if isinstance(content, pd.DataFrame):
            write_table(out / path, content)
        elif isinstance(content, str):
            write_text(out / path, content)
        else:
            write_json(out / path, content)
    problems = find_losses(out, collection, table)
    if problems:
        raise ProcessingError(
            f"{out}: {len(problems)} files are not as {MANIFEST} says, expected every file found "
            "to be placed unchanged or listed as left out; import again:\n" + "\n".join(problems)
        )
    write_json(out / DESCRIPTION, description)
    placed = int((table["status"] == PLACED).sum())
    return Report(len(collection.cases), placed, len(table) - placed, collection.failures)


def _documents(collection: Collection, texts: DatasetTexts) -> dict[Path, Any]:
    """Everything besides the placed files and the manifest, by path."""
    generator = {"Name": "bagau-bids", "Version": __version__, "Description": texts.command}
    description = {
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        **texts.description,
        "GeneratedBy": [generator],
    }
    readme = README.format(
        name=description["Name"],
        command=texts.command,
        version=__version__,
        licence=description.get("License", "not stated"),
        acknowledge=description.get("HowToAcknowledge", "not stated."),
    )
    documents: dict[Path, Any] = {Path("README.md"): readme}
    for name in _derivative_names(collection):
        root = Path("derivatives", name)
        about = _derivative_description(name, description, texts)
        documents[root / "README.md"] = f"# {about['Name']}\n\nSee the README.md two folders up.\n"
        documents[root / ".bidsignore"] = "*_xfm.*\n"
        documents[root / DESCRIPTION] = about
    documents |= _participant_tables(collection, texts)
    return {**documents, MANIFEST.with_suffix(".json"): COLUMNS, DESCRIPTION: description}


def _derivative_names(collection: Collection) -> list[str]:
    parts = (one.target.parts for one in all_placements(collection))
    return sorted({part[1] for part in parts if part[0] == "derivatives"})


def _derivative_description(
    name: str, raw: Mapping[str, Any], texts: DatasetTexts
) -> dict[str, Any]:
    """Describe one derivative data set; the masks of further observers share a text."""
    generic = {
        "Name": f"Manual masks of {raw['Name']}",
        "GeneratedBy": [{"Name": "manual", "Description": "Masks outlined by people"}],
    }
    known = texts.derivatives.get(name, texts.derivatives.get("manual-observer", generic))
    shared = ("License", "Authors", "HowToAcknowledge", "ReferencesAndLinks")
    return {
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        **known,
        **{key: raw[key] for key in shared if key in raw},
        "DatasetLinks": {"raw": "../.."},
    }


def _participant_tables(collection: Collection, texts: DatasetTexts) -> dict[Path, Any]:
    """One row a participant; what differs between the sessions of one goes to their tables."""
    rows = [
        {
            "participant_id": f"sub-{case.entities['sub']}",
            "session_id": f"ses-{case.entities['ses']}" if "ses" in case.entities else None,
            **case.columns,
        }
        for case in collection.cases
    ]
    table = pd.DataFrame(rows)
    people = table.groupby("participant_id", sort=False)
    given = [str(name) for name in table if name not in ("participant_id", "session_id")]
    varying = [name for name in given if (people[name].nunique(dropna=False) > 1).any()]
    constant = [name for name in given if name not in varying]
    documents: dict[Path, Any] = {
        Path("participants.tsv"): table[["participant_id", *constant]].drop_duplicates(
            "participant_id"
        ),
        Path("participants.json"): {
            "participant_id": PARTICIPANT_TEXT,
            **{name: texts.columns[name] for name in texts.columns if name in constant},
        },
    }
    if varying:
        described = {name: texts.columns[name] for name in texts.columns if name in varying}
        for person, sessions in people:
            stem = Path(str(person), f"{person}_sessions")
            documents[stem.with_suffix(".tsv")] = sessions[["session_id", *varying]]
            documents[stem.with_suffix(".json")] = described
    return documents

"""What a data set is imported from, and the checks that each case passes before it is.

Nothing is written here. A case is one FLAIR with its manual mask and whatever else belongs to it.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bagau_bids.bids.derivatives import (
    bids_uri,
    catalogue,
    derivative_path,
    sidecar_path,
    source_folder,
    source_stem,
)
from bagau_bids.bids.masks import NIFTI_EXTENSION, extension_of
from bagau_bids.errors import InputImageError

MANUAL = Path("derivatives", "manual")


@dataclass(frozen=True)
class Placement:
    """A file and its place in the data set.

    Attributes
    ----------
    source : Path
        The file as it was found.
    target : Path
        Relative to the root of the data set.
    check : {'image', 'mask', 'nifti', 'json', 'none'}
        What it must be: a scan, a mask on the FLAIR's grid, any NIfTI image, a JSON object, or
        just a readable file.
    sidecar : mapping or None
        Metadata for the JSON file beside it.
    copied : bool
        Whether it is copied even where others are linked: a file that people edit.
    """

    source: Path
    target: Path
    check: str = "none"
    sidecar: Mapping[str, Any] | None = None
    copied: bool = False

    def how(self, wanted: str) -> str:
        """Return how it is placed where ``wanted`` is asked for: hard, symlink or copy."""
        return "copy" if self.copied else wanted


@dataclass(frozen=True)
class Case:
    """One FLAIR, its mask, and the other files that belong to them.

    Attributes
    ----------
    name : str
        Where it comes from, for messages: ``training/Utrecht/0`` or ``line 2``.
    entities : mapping
        ``sub`` and, where there are sessions, ``ses``.
    columns : mapping
        What is known of the participant, for ``participants.tsv``.
    flair, mask : Placement
        Without them the case cannot be imported.
    others : tuple of Placement
        Each can be left out by itself.
    """

    name: str
    entities: Mapping[str, str]
    columns: Mapping[str, Any]
    flair: Placement
    mask: Placement
    others: tuple[Placement, ...] = ()

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Every file of the case, the FLAIR last: where it is, the case is complete."""
        return (*self.others, self.mask, self.flair)

    @property
    def sources(self) -> tuple[Path, ...]:
        """Every file of the case as it was found."""
        return tuple(one.source for one in self.placements)


@dataclass(frozen=True)
class Failure:
    """A case or a single file that cannot be imported, and why."""

    name: str
    reason: str
    sources: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Collection:
    """Everything that was found, whether it can be imported or not.

    Attributes
    ----------
    root : Path
        Folder that the manifest's source paths are relative to.
    cases : tuple of Case
    extras : tuple of Placement
        Files that belong to no case; they go to ``sourcedata``.
    failures : tuple of Failure
    ignored : mapping of Path to str
        Files left out on purpose, each with the reason.
    notes : tuple of str
        What was assumed.
    """

    root: Path
    cases: tuple[Case, ...]
    extras: tuple[Placement, ...] = ()
    failures: tuple[Failure, ...] = ()
    ignored: Mapping[Path, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def sources(self) -> frozenset[Path]:
        """Every file that was found."""
        placements = [*self.extras, *(one for case in self.cases for one in case.placements)]
        failed = {path for failure in self.failures for path in failure.sources}
        return frozenset({one.source for one in placements} | failed | set(self.ignored))


def raw_placement(
    source: Path,
    entities: Mapping[str, str],
    suffix: str,
    sidecar: Mapping[str, Any] | None = None,
) -> Placement:
    """Place a scan among the raw data as ``<entities>_<suffix>`` with the extension it has."""
    name = f"{source_stem(entities)}_{suffix}{extension_of(source)}"
    return Placement(source, source_folder(entities) / name, "image", sidecar)


def mask_placement(
    source: Path, flair: Placement, entities: Mapping[str, str], description: str, label: str = ""
) -> Placement:
    """Place a manual mask of a FLAIR in ``derivatives/manual``, or in that of another observer.

    Parameters
    ----------
    source : Path
    flair : Placement
        Scan whose grid the mask lies on.
    entities : mapping
    description : str
        For the sidecar.
    label : str
        Name of the observer; empty for the reference standard.
    """
    root = MANUAL.with_name(f"{MANUAL.name}-{label}") if label else MANUAL
    target = derivative_path(root, entities, "wmh_mask")
    stem = NIFTI_EXTENSION.sub("", target.name)
    sidecar = {
        "Type": catalogue().files["wmh_mask"].metadata["Type"],
        "Manual": True,
        "Description": description,
        "SpatialReference": bids_uri("raw", flair.target),
    }
    return Placement(source, target.with_name(f"{stem}{extension_of(source)}"), "mask", sidecar)


def check_cases(
    collection: Collection, progress: Callable[[str], None] = lambda line: None
) -> tuple[Collection, dict[Path, str]]:
    """Read every file to its end and keep what can be imported.

    A case whose FLAIR or mask cannot be used is left out whole; of the others, a file that
    cannot be used. Cases that claim the same name, mask or FLAIR are all left out: nothing tells
    which one is right.

    Parameters
    ----------
    collection : Collection
    progress : callable
        Gets one line a case.

    Returns
    -------
    collection : Collection
        With the cases and extras that are left, and the further failures.
    digests : dict of Path to str
        SHA-256 of every file to be placed.
    """
    cases, failures = _without_shared(
        collection.cases,
        [
            ("the name", lambda case: source_stem(case.entities).casefold()),
            ("the mask", lambda case: case.mask.source.resolve()),
            ("the FLAIR", lambda case: case.flair.source.resolve()),
        ],
    )
    digests: dict[Path, str] = {}
    good = []
    for number, case in enumerate(cases, start=1):
        progress(f"checking {case.name} ({number} of {len(cases)})")
        checked, faults = _check_case(case, digests)
        failures += faults
        good += [checked] if checked else []
    good, copies = _without_shared(
        good, [("the content of the FLAIR", lambda case: digests[case.flair.source])]
    )
    extras = []
    for placement in collection.extras:
        fault = _fault_of(placement, None, digests)
        if fault:
            failures.append(Failure(placement.source.name, fault, (placement.source,)))
        else:
            extras.append(placement)
    checked_collection = replace(
        collection,
        cases=tuple(good),
        extras=tuple(extras),
        failures=(*collection.failures, *failures, *copies),
    )
    return checked_collection, digests


def _without_shared(
    cases: Sequence[Case], keys: Sequence[tuple[str, Callable[[Case], Hashable]]]
) -> tuple[list[Case], list[Failure]]:
    """Separate the cases that have something in common that is a case's own."""
    shared: dict[str, list[str]] = {}
    for what, key in keys:
        groups: dict[Hashable, list[Case]] = defaultdict(list)
        for case in cases:
            groups[key(case)].append(case)
        for group in groups.values():
            for case in group:
                others = [other.name for other in group if other is not case]
                if others:
                    shared.setdefault(case.name, []).append(f"{what} of {', '.join(others)}")
    failures = [
        Failure(
            case.name,
            f"{source_stem(case.entities)} has {' and '.join(shared[case.name])}; expected one "
            "FLAIR and one mask a case, each once: remove the duplicate, or name sessions apart",
            case.sources,
        )
        for case in cases
        if case.name in shared
    ]
    return [case for case in cases if case.name not in shared], failures


def _check_case(case: Case, digests: dict[Path, str]) -> tuple[Case | None, list[Failure]]:
    """Check all files of a case; add their digests."""
    for placement in (case.flair, case.mask):
        fault = _fault_of(placement, case.flair.source, digests)
        if fault:
            return None, [Failure(case.name, fault, case.sources)]
    good, failures = [], []
    without_metadata = set()
    for placement in case.others:
        fault = _fault_of(placement, case.flair.source, digests)
        if placement.target in without_metadata:
            fault = "describes an image that is left out"
        if not fault:
            good.append(placement)
            continue
        name = f"{case.name}, {placement.source.name}"
        failures.append(Failure(name, fault, (placement.source,)))
        if placement.check == "image":
            without_metadata.add(sidecar_path(placement.target))
    return replace(case, others=tuple(good)), failures


def _fault_of(placement: Placement, flair: Path | None, digests: dict[Path, str]) -> str:
    """Say why a file cannot be used; an empty text where it can, and its digest is noted."""
    try:
        _check_content(placement, flair)
        digests[placement.source] = sha256_of(placement.source)
    except InputImageError as error:
        return str(error)
    return ""


def _check_content(placement: Placement, flair: Path | None) -> None:
    from bagau_bids.datasets.labelled import read_reference
    from bagau_bids.preprocessing.conform import conform, read_volume

    path = placement.source
    if placement.check == "image":
        conform(path)
    elif placement.check == "mask" and flair is not None:
        read_reference(path, flair)
    elif placement.check == "nifti":
        read_volume(path)
    elif placement.check == "json":
        read_json_object(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises
    ------
    InputImageError
        If it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputImageError(
            f"{path}: cannot be read as JSON ({error}); expected an object, such as "
            '{"EchoTime": 0.1}: repair or remove it'
        ) from error
    if not isinstance(content, dict):
        raise InputImageError(
            f"{path}: holds {type(content).__name__}; expected a JSON object, such as "
            '{"EchoTime": 0.1}: repair or remove it'
        )
    return content


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits.

    Raises
    ------
    InputImageError
        If it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputImageError(
            f"{path}: cannot be read ({error.strerror}); expected a file: check the path and its "
            "permissions"
        ) from error

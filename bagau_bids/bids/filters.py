"""The query for FLAIR images: what is always asked for, and what a filter file adds.

The file is that of fMRIPrep and MRIQC: JSON with one object of pybids entities for each kind of
image. Only ``flair`` is read; the other kinds that BIDS-Apps know may be there.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagau_bids.errors import UsageError

ENTITIES = {
    "sub": "subject",
    "ses": "session",
    "sample": "sample",
    "task": "task",
    "acq": "acquisition",
    "ce": "ceagent",
    "rec": "reconstruction",
    "run": "run",
    "echo": "echo",
    "part": "part",
    "chunk": "chunk",
}  # of an anatomical image's name: as spelled there, and as pybids calls them
_OTHER_KINDS = ("asl", "bold", "dwi", "fmap", "pet", "roi", "sbref", "t1w", "t2w")
_BY_NAME = {"suffix": ("FLAIR",), "extension": (".nii", ".nii.gz"), "datatype": ("anat",)}
ABSENT = None
ANY = "*"

Wanted = tuple[Any, ...]


@dataclass(frozen=True)
class Query:
    """What a FLAIR must be like.

    Attributes
    ----------
    wanted
        For each pybids entity the values that will do; None stands for an entity that is
        absent, ``"*"`` for one that is there with any value. An entity that is not named may be
        anything.
    """

    wanted: Mapping[str, Wanted]

    def __str__(self) -> str:
        """Return the query in words, entity by entity."""
        words = {ABSENT: "none", ANY: "any"}
        return ", ".join(
            f"{entity} {' or '.join(str(words.get(value, value)) for value in values)}"
            for entity, values in self.wanted.items()
        )


def build_query(
    subjects: Iterable[str], sessions: Iterable[str], filter_file: Path | None
) -> Query:
    """Join participants, sessions and the filter file to one query.

    Parameters
    ----------
    subjects, sessions
        Labels without prefix; empty: all.
    filter_file
        JSON file of filters, or None.

    Raises
    ------
    UsageError
        If the file is no such JSON, names an unknown kind of image or entity, or contradicts the
        labels.
    """
    wanted: dict[str, Wanted] = {**_BY_NAME, "part": ("mag", ABSENT)}
    filters = {} if filter_file is None else read_filters(filter_file)
    for entity, option, labels in (
        ("subject", "--participant-label", tuple(subjects)),
        ("session", "--session-label", tuple(sessions)),
    ):
        if labels and entity in filters and set(labels) != set(filters[entity]):
            raise UsageError(
                f"Conflict over {entity}: {option} asks for {_listed(labels)}, {filter_file} for "
                f"{_listed(filters[entity])}. State it in one place only."
            )
        if labels:
            wanted[entity] = labels
    return Query({**wanted, **filters})


def read_filters(path: Path) -> dict[str, Wanted]:
    """Read the ``flair`` filters of a file: for each pybids entity the values that will do.

    Raises
    ------
    UsageError
        With the file, the offending key and the nearest known ones.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}.") from error
    example = 'expected for example {"flair": {"acquisition": "3D"}}'
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no JSON object; {example}.")
    for kind in content:
        if kind not in ("flair", *_OTHER_KINDS):
            raise UsageError(
                f"{path}: {kind!r} is no kind of image that a filter file may name; {example}."
                f"{_nearest(kind.lower(), ('flair', *_OTHER_KINDS))}"
            )
    filters = content.get("flair", {})
    if not isinstance(filters, dict):
        raise UsageError(f"{path}: flair holds {filters!r}; {example}.")
    return {entity: _values(path, entity, value) for entity, value in filters.items()}


def _values(path: Path, entity: str, value: Any) -> Wanted:
    known = (*ENTITIES.values(), *_BY_NAME)
    if entity not in known:
        long_name = ENTITIES.get(entity)
        hint = f" Did you mean {long_name!r}?" if long_name else _nearest(entity, known)
        raise UsageError(
            f"{path}: {entity!r} is no entity of a FLAIR; known are {', '.join(known)}.{hint}"
        )
    values = value if isinstance(value, list) else [value]
    if not values or not all(item is None or isinstance(item, str | int) for item in values):
        raise UsageError(
            f"{path}: {entity} holds {value!r}; expected a text, a number, null (absent), "
            '"*" (any), or a list of such.'
        )
    prefix = {"subject": "sub-", "session": "ses-"}.get(entity, "")
    texts = tuple(item if item is None else str(item).removeprefix(prefix) for item in values)
    allowed = _BY_NAME.get(entity)
    if allowed and not set(texts) <= set(allowed):
        raise UsageError(
            f"{path}: {entity} {_listed(texts)} is asked for; this program reads "
            f"{_listed(allowed)} only."
        )
    return texts


def _listed(values: Iterable[Any]) -> str:
    return ", ".join("none" if value is None else str(value) for value in values)


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""

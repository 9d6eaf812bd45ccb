"""What the JSON files beside an image say of its sequence, and whether that can be a FLAIR."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = "dataset_description.json"
NAMES = ("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName")
FLAIR_NAME = re.compile(r"flair|fluid|tirm|tir2d|spc_?ir|dark", re.IGNORECASE)
OTHER_NAME = re.compile(
    r"t1|mprage|mp2rage|spgr|bravo|tfl3d|t2|dwi|diff|ep2d|\bep_?b|\bpd\b|swi|\bgre", re.IGNORECASE
)
# Seconds. FLAIRs of 0.5 to 7 T: inversion 1.4 to 3, echo 0.07 and longer, repetition 4.5 to 15.
SHORTEST = {"InversionTime": 1.2, "EchoTime": 0.04, "RepetitionTime": 3.0}
MILLISECONDS = 60.0  # a time longer than this was written in ms


def json_files(folder: Path) -> tuple[Path, ...]:
    """Return the JSON files of a folder, in no order."""
    return tuple(folder.glob("*.json"))


def sidecars_of(
    image: Path, json_files: Callable[[Path], Sequence[Path]] = json_files
) -> tuple[Path, ...]:
    """Find the JSON files that apply to an image by the inheritance principle of BIDS.

    Parameters
    ----------
    image : Path
        In a BIDS data set; outside of one only its own folder is looked at.
    json_files : callable
        Returns the JSON files of a folder. For many images one that remembers them: the root of
        a data set holds a folder for each participant, which take long to go through.

    Returns
    -------
    tuple of Path
        From the root of the data set down: a later one overrides an earlier one.
    """
    parts = image.name.split(".")[0].split("_")
    folders = [image.parent]
    while not (folders[-1] / DESCRIPTION).exists() and folders[-1] != folders[-1].parent:
        folders.append(folders[-1].parent)
    if not (folders[-1] / DESCRIPTION).exists():
        folders = folders[:1]
    found = []
    for folder in reversed(folders):
        for path in sorted(json_files(folder), key=lambda one: len(one.name)):
            own = path.stem.split("_")
            if own[-1] == parts[-1] and set(own) <= set(parts):
                found.append(path)
    return tuple(found)


def read_sidecars(paths: Sequence[Path]) -> dict[str, Any]:
    """Merge JSON files, the later over the earlier; one that cannot be read says nothing."""
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            merged |= content
    return merged


def signs_of_another_sequence(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Tell what in the metadata of an image speaks against a FLAIR.

    Parameters
    ----------
    metadata : mapping
        As BIDS names it; times in seconds.

    Returns
    -------
    tuple of str
        A sign each, without any free text of the metadata; empty where nothing does.
    """
    signs = []
    for name, shortest in SHORTEST.items():
        value = metadata.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            seconds = value / 1000 if value > MILLISECONDS else value
            if seconds < shortest:
                signs.append(f"{name} of {seconds:.4g} s (a FLAIR has {shortest:g} s or more)")
    names = [str(metadata[name]) for name in NAMES if metadata.get(name)]
    known = any(FLAIR_NAME.search(name) for name in names)
    if not known and any(OTHER_NAME.search(name) for name in names):
        signs.append("its sequence is named otherwise")
    return tuple(signs)

"""A light check that a folder is a BIDS data set; no validator and no network are needed."""

import json
from pathlib import Path

from bagau_bids.bids.annex import broken_link
from bagau_bids.errors import UsageError

_REQUIRED = ("Name", "BIDSVersion")
_WAY_OUT = "Correct it, or pass --skip-bids-validation to go on without this check."


def check_dataset(bids_dir: Path) -> None:
    """Check that ``dataset_description.json`` is there, is JSON, and names data set and version.

    Parameters
    ----------
    bids_dir
        Root of the data set.

    Raises
    ------
    UsageError
        With the file, what was found in it and what BIDS expects.
    """
    path = bids_dir / "dataset_description.json"
    example = '{"Name": "My data", "BIDSVersion": "1.10.0"}'
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if reason := broken_link(path):
            raise UsageError(f"{reason}. {_WAY_OUT}") from None
        raise UsageError(
            f"{path} is missing; BIDS expects it in the root of a data set, at least {example}."
            f"{_root_hint(bids_dir)} {_WAY_OUT}"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}. {_WAY_OUT}") from error
    if not isinstance(description, dict):
        raise UsageError(f"{path} holds no JSON object; expected at least {example}. {_WAY_OUT}")
    lacking = [key for key in _REQUIRED if not isinstance(description.get(key), str)]
    if lacking:
        raise UsageError(
            f"{path} lacks {' and '.join(lacking)}; expected at least {example}. {_WAY_OUT}"
        )


def _root_hint(bids_dir: Path) -> str:
    """Name a data set one level up or down, the usual slip."""
    around = [bids_dir.parent, *sorted(path for path in bids_dir.iterdir() if path.is_dir())]
    for folder in around:
        if (folder / "dataset_description.json").is_file() and folder.name != "derivatives":
            return f" There is one in {folder}: is that the data set?"
    return ""

"""The state of a training on disk, and whether a training may go on from it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from bagau_bids.errors import UsageError
from bagau_bids.files import replacing

CHECKPOINT = "checkpoint.pt"


def refuse_overwriting(output_dir: Path) -> None:
    """Make sure that no training is lost by a new one in its folder.

    Raises
    ------
    UsageError
        If the folder holds a checkpoint.
    """
    path = output_dir / CHECKPOINT
    if path.is_file():
        raise UsageError(
            f"{path}: the folder holds a training; go on with --resume, or name another"
        )


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values, by an atomic rename."""
    with replacing(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; only tensors and plain values are unpickled."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


def refuse_changes(
    path: Path,
    what: str,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    free: Collection[str] = (),
) -> None:
    """Make sure that a training goes on as it began.

    Parameters
    ----------
    path : Path
        The checkpoint.
    what : str
        What is compared, for the message.
    then, now : mapping
        With the same keys. Of lists, such as names of scans, the message names the members
        that are in one only.
    free : collection of str
        Keys that may differ.

    Raises
    ------
    UsageError
        If anything else differs.
    """
    changed = [
        f"{name}: {_difference(then[name], now[name])}"
        for name in sorted(now)
        if then[name] != now[name] and name not in free
    ]
    if changed:
        raise UsageError(
            f"{path}: made with other {what} ({', '.join(changed)}); resume with the same, or "
            "train into another folder"
        )


def _difference(then: Any, now: Any) -> str:
    if not isinstance(then, list) or not isinstance(now, list):
        return f"{then} not {now}"
    gone, new = ([one for one in a if one not in b] for a, b in ((then, now), (now, then)))
    if not gone and not new:
        return "in another order"
    return f"{' '.join(gone) or 'none'} not {' '.join(new) or 'none'}"

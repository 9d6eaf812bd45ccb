"""How the text of one option becomes a checked value, or is refused with a reason."""

import argparse
import math
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

_GB_PER_UNIT = {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}
_MEMORY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGT])?(?:i?B)?", re.IGNORECASE)


def label(prefix: str) -> Callable[[str], str]:
    """Return a reader of BIDS labels that drops ``prefix-`` ("sub" or "ses") where it is given."""

    def read(text: str) -> str:
        value = text.removeprefix(f"{prefix}-")
        if not re.fullmatch(r"[0-9a-zA-Z+]+", value):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no BIDS label; expected letters and digits, "
                f"such as 01 or {prefix}-01"
            )
        return value

    return read


def whole_number(minimum: int) -> Callable[[str], int]:
    """Return a reader of whole numbers of at least ``minimum``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(
                f"{text!r} was given; expected a whole number of at least {minimum}"
            )
        return value

    return read


def at_least(minimum: int) -> dict[str, Any]:
    """Return what makes an option one of a whole number, N in the help."""
    return {"metavar": "N", "type": whole_number(minimum)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def not_negative(text: str) -> float:
    """Read a number of at least 0."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of at least 0")
    return value


def share(text: str) -> float:
    """Read a number of more than 0 and at most 1."""
    value = not_negative(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected more than 0 and at most 1")
    return value


def threshold(text: str) -> float:
    """Read a probability strictly between 0 and 1."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} was given; expected a probability between 0 and 1, both excluded"
        )
    return value


def lesion_size_mm3(text: str) -> float:
    """Read a volume in mm3, zero or more."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r} was given; expected a volume in mm3, 0 or larger"
        )
    return value


def memory_gb(default_unit: str | None) -> Callable[[str], float]:
    """Return a reader of an amount of memory, in GB (1e9 bytes).

    Parameters
    ----------
    default_unit
        "M" or "G" for an option whose name states its unit; None where a bare number is
        refused, because other BIDS-Apps disagree on what it means.
    """

    def read(text: str) -> float:
        match = _MEMORY.fullmatch(text.strip())
        unit = match and (match[2] or default_unit)
        if match is None or unit is None:
            raise argparse.ArgumentTypeError(
                f"{text!r} was given; expected a number with its unit K, M, G or T, such as 16G "
                "(a bare number is read as MB by some BIDS-Apps and as GB by others)"
            )
        value = float(match[1]) * _GB_PER_UNIT[unit.upper()]
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text!r} was given; expected more than nothing")
        return value

    return read


def device(text: str) -> str:
    """Read ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} was given; expected auto, cpu, cuda or cuda:N, such as cuda:0"
        )
    return text


def output_space(templates: Collection[str]) -> Callable[[str], str]:
    """Return a reader of ``orig`` or a template's name, with or without ``:res-1``, all it has."""

    def read(text: str) -> str:
        name = text.removesuffix(":res-1")
        if text != "orig" and name not in templates:
            raise argparse.ArgumentTypeError(
                f"{text!r} was given; expected orig or a template: {', '.join(templates)}"
            )
        return name

    return read


def derivatives_dir(text: str) -> Path:
    """Read ``PATH`` or ``NAME=PATH`` of a folder of derivatives that exists."""
    path = Path(text)
    if "=" in text and not path.is_dir():
        path = Path(text.split("=", 1)[1])
    if not path.is_dir():
        raise argparse.ArgumentTypeError(
            f"{path}: no such folder; expected a folder of BIDS derivatives"
        )
    return any_path(str(path))


def existing_file(text: str) -> Path:
    """Read the path of a file that exists."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{path}: no such file")
    return any_path(text)


def any_path(text: str) -> Path:
    """Read a path, made absolute; it need not exist."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path was given")
    return readable_path(Path(os.path.abspath(text)))


def readable_path(path: Path) -> Path:
    """Return a path whose names are text, as tables, JSON and pages can hold them; refuse others.

    Linux takes any bytes for a name. Where they are no UTF-8 Python keeps them as lone surrogates.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise argparse.ArgumentTypeError(
            f"{shown}: a name in this path is no UTF-8 text, which results could not hold; "
            "rename that folder, or reach it by a link of another name"
        ) from None
    return path

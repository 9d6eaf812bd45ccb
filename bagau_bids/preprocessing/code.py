"""What the tool's own code contributes to what is kept between trainings."""

import hashlib
from pathlib import Path

import bagau_bids

# From a FLAIR to tensors, of real scans and of synthetic ones.
TENSOR_CODE = ("preprocessing", "network/slices.py", "spaces.py", "data/registration")
INPUT_CODE = (
    *TENSOR_CODE,
    "network/brain_unet.py",
    "evaluation/scoring.py",  # reads the reference
    "datasets/labelled.py",
)
ENGINE_CODE = (*TENSOR_CODE, "synthesis")


def code_digest(rooms: tuple[str, ...]) -> str:
    """SHA-256 of the source of rooms and modules of this package.

    Preprocessed scans and synthetic slices that an older version of the code has left on disk
    are told by it from those that this one would make.

    Parameters
    ----------
    rooms : tuple of str
        Folders or files below the package, as ``"preprocessing"`` or ``"spaces.py"``. Of a
        folder of ``data`` every file counts, of others the Python files.

    Returns
    -------
    digest : str
        In hexadecimal; the same on every machine with the same code.
    """
    package = Path(bagau_bids.__file__).parent
    digest = hashlib.sha256()
    for room in rooms:
        path = package / room
        pattern = "*" if room.startswith("data/") else "*.py"
        sources = [path] if path.is_file() else sorted(path.rglob(pattern))
        for source in sources:
            digest.update(source.relative_to(package).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()

"""The FLAIR of a folder of DICOM files, told by its headers and converted by dcm2niix."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib

from bagau_bids.bids.derivatives import sidecar_path
from bagau_bids.errors import MissingResourceError, UsageError
from bagau_bids.files import copy_file

# Names of the sequence by manufacturer: FLAIR, dark-fluid, turbo inversion recovery magnitude.
NAMED = re.compile(r"flair|dark[ _-]?fluid|tirm", re.IGNORECASE)
NAMES = ("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceDetails")
# Fluid is dark after an inversion time of about 1.65 (3-D, 1.5 T) to 2.8 s, and the contrast that
# of T2, which tells it from a T1 FLAIR. At 7 T and in 3-D fast sequences the nominal echo time is
# long too.
INVERSION_S = (1.4, 3.2)
LEAST_ECHO_S = 0.06
FEWEST_SLICES = 4  # fewer are a localiser
_MOST_VISITS = 10  # folders that a message names


@dataclass(frozen=True)
class Series:
    """A series of images as dcm2niix converted it.

    Attributes
    ----------
    image
        The NIfTI file.
    header
        What dcm2niix wrote beside it.
    """

    image: Path
    header: Mapping[str, Any]

    @property
    def number(self) -> int:
        """Number of the series in its study."""
        return int(self.header.get("SeriesNumber", 0))

    @property
    def names(self) -> str:
        """What the header calls the sequence."""
        found = (str(self.header[key]) for key in NAMES if self.header.get(key))
        return ", ".join(dict.fromkeys(found)) or "no name"

    @property
    def is_flair(self) -> bool:
        """Whether the name or the times say so, neither the times nor the slices against it."""
        inversion, echo = (self.header.get(key) for key in ("InversionTime", "EchoTime"))
        shape = nib.Nifti1Image.from_filename(self.image).shape
        if len(shape) != 3 or min(shape) < FEWEST_SLICES:
            return False
        if echo is not None and echo < LEAST_ECHO_S:
            return False
        if inversion is not None:
            return INVERSION_S[0] <= inversion <= INVERSION_S[1]
        return NAMED.search(self.names) is not None

    def __str__(self) -> str:
        """Say number, names and times, as a person looks for them."""
        times = (
            f"{word} {1000 * self.header[key]:.0f} ms"
            for key, word in (("InversionTime", "TI"), ("EchoTime", "TE"))
            if key in self.header
        )
        return f"series {self.number}: {', '.join([self.names, *times])}"


def convert_folders(
    scans: Mapping[str, Path],
    into: Path,
    series: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Path]:
    """Convert the FLAIR of each folder among scans; see `take_flair`.

    Parameters
    ----------
    scans : mapping of str to Path
        NIfTI files and folders of DICOM files, by name.
    into : Path
        Folder of the files that are made, ``<name>.nii.gz``.
    series : int, optional
        Number of the series to take.
    progress : callable
        Gets a line for each that is taken.

    Returns
    -------
    dict of str to Path
        The files by the same names.
    """
    files = {}
    for name, path in scans.items():
        files[name] = path
        if path.is_dir():
            taken = take_flair(path, into / f"{name}.nii.gz", series)
            progress(f"{name}: {taken}")
            files[name] = taken.image
    return files


def take_flair(folder: Path, target: Path, series: int | None = None) -> Series:
    """Convert the FLAIR of a folder of DICOM files.

    Parameters
    ----------
    folder : Path
        Searched with all that is below it.
    target : Path
        NIfTI file to write (``.nii.gz``), with what the headers say as JSON beside it.
    series : int, optional
        Number of the series to take, whatever its headers say.

    Returns
    -------
    Series
        What was taken.

    Raises
    ------
    UsageError
        If the folder has no DICOM images, or not one FLAIR; all series are listed then.
    MissingResourceError
        If dcm2niix is not installed.
    """
    with TemporaryDirectory(prefix="bagau-dicom-") as temporary:
        found = _convert(folder, Path(temporary))
        chosen = [
            one for one in found if (one.is_flair if series is None else one.number == series)
        ]
        if len(chosen) != 1:
            what = "no FLAIR" if series is None else f"no series {series}"
            raise UsageError(
                f"{folder}: {f'{len(chosen)} series' if chosen else what} of {len(found)} fit; "
                f"expected one FLAIR: choose one by --series, or convert it and name the file"
                f"{_visits(folder, chosen)}\n" + "\n".join(f"  {one}" for one in found)
            )
        copy_file(chosen[0].image, target)
        copy_file(sidecar_path(chosen[0].image), sidecar_path(target))
        return Series(target, chosen[0].header)


def _visits(folder: Path, chosen: Sequence[Series]) -> str:
    """Say how to take the FLAIR of each of several visits, where there are several FLAIRs."""
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    numbers = [one.number for one in chosen]
    if len(chosen) < 2:
        return ""
    if len(below) == len(chosen):
        first = [shlex.quote(str(path)) for path in below[:_MOST_VISITS]]
        more = " ..." if len(below) > _MOST_VISITS else ""
        words = f"the folder of each: bagau segment {' '.join(first)}{more} OUT"
    elif len(set(numbers)) == len(numbers):
        each = (f"bagau segment {shlex.quote(str(folder))} OUT{n} --series {n}" for n in numbers)
        words = f"each by itself: {'; '.join(each)}"
    else:
        return "; several have one number: put each visit into a folder of its own"
    return f". If they are visits, name {words}"


def _convert(folder: Path, into: Path) -> list[Series]:
    """Convert everything that is in a folder; return the series in the order of their numbers."""
    try:
        import dcm2niix
    except ImportError as error:
        raise MissingResourceError(
            f"{folder}: is a folder, and DICOM files are read by dcm2niix, which is not "
            "installed; install it (pip install 'bagau-bids[dicom]'), or name NIfTI files"
        ) from error

    command = [dcm2niix.bin, "-b", "y", "-ba", "y", "-z", "y", "-f", "%s_%d", "-o", into, folder]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    found = [
        Series(path, json.loads(sidecar_path(path).read_text(encoding="utf-8", errors="replace")))
        for path in into.glob("*.nii.gz")
        if sidecar_path(path).is_file()
    ]
    if not found and (images := sorted(path.name for path in folder.rglob("*.nii*"))):
        raise UsageError(
            f"{folder}: holds NIfTI files ({', '.join(images[:3])}) and no DICOM images; expected "
            "the DICOM files of one study: name the NIfTI files themselves"
        )
    if not found:
        said = " ".join(f"{done.stdout}{done.stderr}".split("\n", 1)[-1].split())[-300:]
        raise UsageError(
            f"{folder}: no DICOM images could be converted{f' ({said})' if said else ''}; "
            "expected NIfTI files, or a folder with the DICOM files of one study"
        )
    return sorted(found, key=lambda one: (one.number, one.image.name))

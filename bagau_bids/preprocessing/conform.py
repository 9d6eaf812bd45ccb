"""Read a FLAIR into one finite 3-D float32 RAS+ volume, and write results back on its grid."""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bagau_bids.bids.annex import broken_link
from bagau_bids.errors import InputImageError
from bagau_bids.preprocessing.intensities import refuse_wrapped, repair_extremes
from bagau_bids.spaces import (
    Image,
    OnGrid,
    grid_distance_mm,
    orthonormal_affine,
    reorient,
    restore_orientation,
    shear_degrees,
    voxel_sizes,
)

MIN_SLICES = 5
VOXEL_SIZE_RANGE_MM = (0.1, 20.0)
FORM_MISMATCH_MM = 0.1  # sform and qform further apart than this at a corner are reported
SHEAR_NOTE_DEGREES = 0.1
MOST_VOXELS = 2**29  # 2,000 slices of 512 x 512
MOST_BEYOND = 2**24  # bytes before the image data, and after them
LONGEST_HEADER = 540  # NIfTI-2
CHUNK = 2**20
GZIP = 31  # zlib's sign for one gzip member
MAGIC = b"\x1f\x8b"
NO_NIFTI = "is not a NIfTI image; expected a single-file NIfTI-1 or NIfTI-2: convert it"
NEGATIVE_SHARE = 0.02  # of the maximum; less is ringing or interpolation
GEOMETRY_FIELDS = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
)


@dataclass(frozen=True)
class StoredVolume(Image):
    """One volume as it lies in its file: the header's scaling, the file's own voxel order.

    Attributes
    ----------
    path : Path
        The file.
    notes : tuple of str
        What was found unusual.
    """

    path: Path
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Conformed(Image):
    """A scan ready for processing.

    Attributes
    ----------
    data : (X, Y, Z) array, float32
        Finite intensities in RAS+ voxel order (axes swapped and flipped, never interpolated).
    notes : tuple of str
        What was found unusual or changed, for the log and the report.
    stored_axes : str
        Where the voxel axes of the file run to, e.g. ``LPS``.
    """

    notes: tuple[str, ...]
    stored_axes: str


def conform(path: str | Path) -> Conformed:
    """Read an image and check that it can be processed.

    The file is read to its last byte, so that damage is found here and not hours later.
    The sform is used where it is set, else the qform, else the voxel sizes alone.

    Parameters
    ----------
    path : str or Path
        NIfTI-1 or NIfTI-2 file, ``.nii`` or ``.nii.gz``.

    Returns
    -------
    Conformed

    Raises
    ------
    InputImageError
        If the file is missing, damaged, not a NIfTI image, not a single real-valued volume of at
        least five slices, empty, wrapped round, or without a usable geometry; the message says
        which.
    """
    from nibabel.orientations import aff2axcodes

    path = Path(path)
    stored = read_volume(path)
    volume, value_notes = _intensities(path, stored.data)
    ras = reorient(Image(volume, stored.affine))
    data = np.ascontiguousarray(ras.data)
    axes = "".join(aff2axcodes(stored.affine))
    return Conformed(data, ras.affine, (*stored.notes, *value_notes), axes)


def check_start(path: Path) -> None:
    """Make sure that a file begins as an image does; the rest of it is not read.

    Parameters
    ----------
    path : Path
        As for `read_volume`.

    Raises
    ------
    InputImageError
        If the file is missing, not a NIfTI image, or of a size that no image has.
    """
    _check_file(path)
    with _opened(path) as stream:
        start = stream.read(LONGEST_HEADER)
        header_class = _header_class(path, start)
        _expected_bytes(path, header_class(start[: header_class.sizeof_hdr], check=False))


def read_volume(path: Path) -> StoredVolume:
    """Read a file to its last byte as one volume with a usable geometry, whatever it shows.

    Parameters
    ----------
    path : Path
        NIfTI-1 or NIfTI-2 file, ``.nii`` or ``.nii.gz``.

    Returns
    -------
    StoredVolume

    Raises
    ------
    InputImageError
        If the file is missing, damaged, not a NIfTI image, not a single real-valued volume of at
        least five slices, or without a usable geometry; the message says which.
    """
    _check_file(path)
    image, notes = _read(path)
    _check_header(path, image)
    notes += _check_geometry(path, image)
    try:
        scaled = np.asanyarray(image.dataobj)
    except (OSError, ValueError) as error:
        raise InputImageError(
            f"{path}: the image data are truncated ({error}); copy the file again from its source"
        ) from error
    if scaled.ndim > 3:
        notes.append(f"Image of shape {image.shape} squeezed to three dimensions.")
    return StoredVolume(scaled.reshape(image.shape[:3]), image.affine, path, tuple(notes))


def to_source(data_ras: NDArray, source: Any, dtype: DTypeLike) -> Any:
    """Bring an array on the conformed grid back to the grid and header geometry of its source.

    Parameters
    ----------
    data_ras : (X, Y, Z) array
        Values on the grid that `conform` returned for the source.
    source : nibabel.Nifti1Image or nibabel.Nifti2Image
        The image as it was loaded from disk; only its header is used.
    dtype : dtype
        Type on disk, e.g. uint8 for a mask and float32 for a probability.

    Returns
    -------
    nibabel.Nifti1Image or nibabel.Nifti2Image
        3-D image of the source's class. sform, qform, their codes, voxel sizes and units are the
        source's, bit for bit; description, intent and extensions are not taken over. The display
        range is 0 to 1 where all values lie in it, else left to the viewer.

    Raises
    ------
    ValueError
        If the array does not lie on the source's grid or loses values in `dtype`.
    """
    values = restore_orientation(np.asarray(data_ras), source)
    stored = np.ascontiguousarray(values.astype(dtype))
    if np.issubdtype(stored.dtype, np.integer) and not np.array_equal(stored, values):
        raise ValueError(f"values of type {values.dtype} do not fit into {stored.dtype}")
    header = type(source.header)()
    for field in GEOMETRY_FIELDS:
        header[field] = source.header[field]
    header["pixdim"][:4] = source.header["pixdim"][:4]
    header.set_data_dtype(stored.dtype)
    if stored.min() >= 0 and stored.max() <= 1:
        header["cal_max"] = 1
    return type(source)(stored, source.affine, header)


def _check_file(path: Path) -> None:
    """Refuse what is not a readable file before any image library sees it."""
    if reason := broken_link(path):
        raise InputImageError(reason)
    if not path.exists():
        raise InputImageError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputImageError(f"{path}: is a folder; expected a .nii or .nii.gz file")
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise InputImageError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    if not start:
        raise InputImageError(f"{path}: the file is empty (0 bytes); copy it again")
    if b"/annex/objects/" in start or start.startswith(b"version https://git-lfs"):
        raise InputImageError(
            f"{path}: holds a pointer and not the image; fetch the content with "
            f"`datalad get {path.name}` (git-annex) or `git lfs pull` (git LFS)"
        )
    gzipped = start.startswith(MAGIC)
    if path.suffix == ".gz" and not gzipped:
        _header_size(path, start)
        raise InputImageError(
            f"{path}: named .gz but its content is not gzipped; rename it to .nii or compress it"
        )
    if path.suffix == ".nii" and gzipped:
        raise InputImageError(
            f"{path}: named .nii but its content is gzipped; rename it to .nii.gz"
        )


def _read(path: Path) -> tuple[Any, list[str]]:
    """Whole file as a NIfTI image in memory, and what was unusual about the file.

    No more is read than the header asks for, so that a small file cannot fill the memory.
    """
    import nibabel as nib

    with _opened(path) as stream:
        start = stream.read(LONGEST_HEADER)
        header_class = _header_class(path, start)
        expected = _expected_bytes(
            path, header_class(start[: header_class.sizeof_hdr], check=False)
        )
        content = start + stream.read(expected - len(start))
        beyond = len(stream.read(MOST_BEYOND + 1))
    if beyond > MOST_BEYOND:
        raise InputImageError(
            f"{path}: goes on for more than {MOST_BEYOND // 2**20} MiB after the {expected} bytes "
            "that its header asks for; expected one image: the header is wrong, or the file is "
            "not an image: convert it again"
        )
    image_class = {348: nib.Nifti1Image, 540: nib.Nifti2Image}[header_class.sizeof_hdr]
    try:
        image = image_class.from_bytes(content)
    except (nib.spatialimages.HeaderDataError, ValueError) as error:
        raise InputImageError(
            f"{path}: the NIfTI header cannot be used ({error}); convert the image again"
        ) from error
    notes = []
    if stream.garbage:
        notes.append("Something that is not gzipped follows the gzip stream; it was left out.")
    return image, notes


@contextmanager
def _opened(path: Path) -> "Iterator[Stream]":
    """Open a file; damage that is found while it is read is told of."""
    with path.open("rb") as file:
        try:
            yield Stream(file, gzipped=path.suffix == ".gz")
        except (EOFError, OSError, zlib.error) as error:
            raise InputImageError(
                f"{path}: the gzip stream is truncated or damaged ({error}); copy the file again "
                "from its source"
            ) from error


class Stream:
    """Bytes of a file, of its gzip members where it has some, read on without seeking.

    Parameters
    ----------
    file
        Open for reading bytes.
    gzipped : bool
        Whether it is one gzip member or several, one after another. Zeros and, as for gzip
        itself, anything else after the last are left out; `garbage` tells of the latter.
    """

    def __init__(self, file: BinaryIO, *, gzipped: bool) -> None:
        self.file = file
        self.gzipped = gzipped
        self.garbage = False
        self._member: Any = zlib.decompressobj(GZIP) if gzipped else None
        self._compressed = b""

    def read(self, count: int) -> bytes:
        """Read so many bytes, fewer at the end.

        Raises
        ------
        EOFError, zlib.error
            If a gzip member is truncated or damaged.
        """
        if not self.gzipped:
            return self.file.read(max(count, 0))
        pieces = []
        while count > 0 and (piece := self._piece(count)):
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def _piece(self, most: int) -> bytes:
        """Read some bytes, at most so many; none at the end."""
        while self._member is not None:
            if self._member.eof and not self._next_member():
                return b""
            compressed = self._compressed or self.file.read(CHUNK)
            piece: bytes = self._member.decompress(compressed, min(most, CHUNK))
            self._compressed = self._member.unconsumed_tail
            if piece:
                return piece
            if not compressed and not self._member.eof:
                raise EOFError("it ends before its end")
        return b""

    def _next_member(self) -> bool:
        """Go on to the next gzip member, if there is one."""
        rest = self._member.unused_data.lstrip(b"\0")
        while not rest and (more := self.file.read(CHUNK)):
            rest = more.lstrip(b"\0")
        if len(rest) == 1:
            rest += self.file.read(1)
        if rest.startswith(MAGIC):
            self._member, self._compressed = zlib.decompressobj(GZIP), rest
            return True
        self._member, self.garbage = None, bool(rest)
        return False


def _header_class(path: Path, start: bytes) -> Any:
    """Class of the header that a file begins with."""
    import nibabel as nib

    known = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    size = _header_size(path, start)
    magic = start[344:347] if size == 348 else start[4:7]
    if magic not in (b"n+1", b"n+2"):
        raise InputImageError(f"{path}: {NO_NIFTI}")
    if len(start) < size:
        raise InputImageError(
            f"{path}: the header is truncated, {len(start)} bytes of {size}; copy the file again "
            "from its source"
        )
    return known[size]


def _header_size(path: Path, start: bytes) -> int:
    """Size of the header that a file begins with, as its first number says."""
    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")} & {348, 540}
    if not sizes:
        raise InputImageError(f"{path}: {NO_NIFTI}")
    return sizes.pop()


def _expected_bytes(path: Path, header: Any) -> int:
    """Bytes from the start of a file to the end of its image, as the header says.

    Raises
    ------
    InputImageError
        If they are no size of an image, or more than can be processed.
    """
    dimensions = [int(n) for n in header["dim"]]
    shape = tuple(dimensions[1 : dimensions[0] + 1])
    offset, bits = float(header["vox_offset"]), int(header["bitpix"])
    if not 1 <= dimensions[0] <= 7 or min(shape) < 1 or not 0 <= offset <= MOST_BEYOND:
        raise InputImageError(
            f"{path}: the NIfTI header cannot be used (shape {shape}, image data from byte "
            f"{offset:g}); convert the image again"
        )
    if math.prod(shape) > MOST_VOXELS:
        raise InputImageError(
            f"{path}: has {math.prod(shape)} voxels, shape {shape}; expected at most "
            f"{MOST_VOXELS}: the header is wrong, or the image is to be resampled"
        )
    return int(offset) + math.prod(shape) * max(bits, 8) // 8


def _check_header(path: Path, image: Any) -> None:
    """Refuse pixel types and shapes that are not one volume of real numbers."""
    shape, dtype = image.shape, image.get_data_dtype()
    if dtype.fields is not None:
        raise InputImageError(
            f"{path}: has colour (RGB) voxels; expected one number a voxel: it is a screenshot or "
            "a colour map, give the image itself"
        )
    if dtype.kind == "c":
        raise InputImageError(
            f"{path}: has complex voxels; expected real numbers: give the magnitude image"
        )
    if len(shape) < 3:
        raise InputImageError(f"{path}: has {len(shape)} dimensions {shape}; expected 3")
    if np.prod(shape[3:], dtype=int) != 1:
        raise InputImageError(
            f"{path}: has several volumes, shape {shape}; expected one: split it and keep "
            "the volume that is meant"
        )
    if min(shape[:3]) < MIN_SLICES:
        raise InputImageError(
            f"{path}: has only {min(shape[:3])} slices, shape {shape[:3]}; expected at least "
            f"{MIN_SLICES}: it may be a localiser"
        )


def _check_geometry(path: Path, image: Any) -> list[str]:
    """Refuse an affine that places nothing; describe one that is unusual."""
    affine = image.affine
    if not np.isfinite(affine).all():
        raise InputImageError(f"{path}: the affine is not finite:\n{affine}\nrepair the header")
    sizes = voxel_sizes(affine)
    if sizes.min() == 0 or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        raise InputImageError(
            f"{path}: the affine is zero or flat along an axis:\n{affine}\nrepair the header (if "
            "only the sform is wrong, set it from the qform)"
        )
    low, high = VOXEL_SIZE_RANGE_MM
    if sizes.min() < low or sizes.max() > high:
        found = " x ".join(f"{size:.4g}" for size in sizes)
        raise InputImageError(
            f"{path}: voxel sizes of {found} mm; expected {low:g} to {high:g} mm: the header is "
            f"wrong or in another unit ({image.header.get_xyzt_units()[0]})"
        )
    notes = _form_notes(image)
    shear = shear_degrees(affine)
    try:
        orthonormal_affine(affine)
    except InputImageError as error:
        raise InputImageError(f"{path}: {error}") from error
    if shear > SHEAR_NOTE_DEGREES:
        notes.append(
            f"Voxel axes are {shear:.2f} degrees away from right angles; repaired for "
            "registration only."
        )
    return notes


def _form_notes(image: Any) -> list[str]:
    """Compare the two affines of a NIfTI header."""
    from nibabel.spatialimages import HeaderDataError

    header = image.header
    codes = int(header["sform_code"]), int(header["qform_code"])
    if codes == (0, 0):
        return [
            "Neither sform nor qform is set: orientation is guessed from the voxel order, left "
            "and right may be swapped."
        ]
    if 0 in codes:
        return []
    try:
        qform = header.get_qform()
    except (HeaderDataError, ValueError):
        qform = np.full((4, 4), np.nan)
    if not np.isfinite(qform).all():
        return ["The qform is not a valid rotation; the sform was used."]
    distance_mm, angle = _affine_difference(image, qform)
    if distance_mm <= FORM_MISMATCH_MM:
        return []
    return [
        f"sform and qform differ by up to {distance_mm:.1f} mm and {angle:.1f} degrees; the sform "
        "was used."
    ]


def _affine_difference(grid: OnGrid, other: NDArray) -> tuple[float, float]:
    """Largest distance (mm) between two placements of a grid's corners, and their angle."""
    rotations = []
    for affine in (grid.affine, other):
        left, _, right = np.linalg.svd(affine[:3, :3] / voxel_sizes(affine))
        rotations.append(left @ right)
    turn = rotations[0].T @ rotations[1]
    angle = np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    return grid_distance_mm(grid, other), float(angle)


def _intensities(path: Path, values: NDArray) -> tuple[NDArray[np.float32], list[str]]:
    """Finite float32 values in the source's voxel order."""
    notes = []
    with np.errstate(over="ignore"):
        volume = values.astype(np.float32)
    n_nan, n_infinite = int(np.isnan(volume).sum()), int(np.isinf(volume).sum())
    if n_nan or n_infinite:
        volume[~np.isfinite(volume)] = 0
        notes.append(
            f"{n_nan} NaN and {n_infinite} infinite voxels of {volume.size} were set to 0."
        )
    low, high = volume.min(), volume.max()
    if low == high == 0:
        what = "zero or not a number" if n_nan or n_infinite else "zero"
        raise InputImageError(f"{path}: every voxel is {what}; there is no image to process")
    if low == high:
        raise InputImageError(
            f"{path}: every voxel has the same value ({low:g}); there is no image to process"
        )
    try:
        refuse_wrapped(volume)
    except InputImageError as error:
        raise InputImageError(f"{path}: {error}") from error
    volume, repairs = repair_extremes(volume)
    notes += repairs
    low, high = volume.min(), volume.max()
    if low < -NEGATIVE_SHARE * high:
        notes.append(
            f"Intensities from {low:.4g} to {high:.4g}: negative ones suggest that other software "
            "normalised the image; the lowest in the brain counts as zero."
        )
    return volume, notes

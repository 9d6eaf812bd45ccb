"""A participant's T1w on the grid of the FLAIR, for networks that look at both.

A T1w that was resampled onto the FLAIR already is taken as it is. Another one is registered
rigidly by elastix, driven by mutual information in the brain of the FLAIR, from up to four
starts: scanners keep one coordinate system through a session, but exports and second sessions
lose it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bagau_bids.errors import InputImageError, ProcessingError
from bagau_bids.preprocessing.bias_field import correct_bias_field
from bagau_bids.preprocessing.conform import conform
from bagau_bids.preprocessing.elastix import Elastix, ParameterMap, read_parameter_file
from bagau_bids.preprocessing.registration import mutual_information, search_start, smooth
from bagau_bids.preprocessing.transforms import (
    TemplateTransform,
    forward_field,
    from_elastix,
    sample,
)
from bagau_bids.spaces import (
    Grid,
    Image,
    OnGrid,
    isotropic_grid,
    orthonormal_affine,
    resample,
    same_grid,
)

SPACING_MM = 2.0  # grid on which elastix sees both images
RIM_MM = 4.0  # around the brain mask, where samples are drawn too: the brain's edge guides
CLIP_PERCENTILE = 99.5  # fat and vessels above it
HEAD_SHARE = 0.15  # of the clipped range: brighter voxels count as head
HEAD_HEIGHT_MM = 150.0  # below the vertex: the neck, which one field of view has and one has not
GOOD_INFORMATION = 0.20  # mutual information in nats below which other starts are tried
FAILED_INFORMATION = 0.10  # below it the two are not aligned
LEAST_COVERAGE = 0.9  # of the brain mask by the T1w's field of view

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class T1w(Image):
    """A T1w on a FLAIR's grid, float32, bias corrected.

    Attributes
    ----------
    transform
        (4, 4) FLAIR points to T1w points, mm, RAS+; the identity where the grids were one.
    start
        From where elastix found it; ``same grid`` where nothing was registered.
    mutual_information
        Between the two images in the brain mask, nats.
    coverage
        Share of the brain mask that lies in the T1w's field of view.
    notes
        What a user should know.
    """

    transform: Array
    start: str
    mutual_information: float
    coverage: float
    notes: tuple[str, ...] = ()


def t1w_on_flair(
    path: Path,
    flair: Image,
    brain_mask: npt.NDArray[np.bool_],
    *,
    seed: int = 0,
    threads: int = 1,
) -> T1w:
    """Bring a T1w onto the grid of a FLAIR of the same head.

    Parameters
    ----------
    path
        The T1w, a NIfTI file.
    flair
        Conformed and not corrected.
    brain_mask
        (X, Y, Z) of `flair`.
    seed, threads
        Of elastix. The result is a function of the inputs and these two.

    Returns
    -------
    T1w

    Raises
    ------
    InputImageError
        If the T1w cannot be read.
    ProcessingError
        If the two cannot be aligned, or the T1w does not show the brain.
    """
    try:
        moving = conform(path)
    except InputImageError as error:
        raise InputImageError(f"T1w of this FLAIR: {error}") from error
    if same_grid(moving, flair):
        found, start = np.eye(4), "same grid"
        data = moving.data
        information = mutual_information(flair.data[brain_mask], data[brain_mask])
    else:
        found, start, information = register_rigidly(
            flair, moving, brain_mask, seed=seed, threads=threads
        )
        data = _moved(moving, found, flair)
    view = Image(np.ones(moving.shape, np.float32), moving.affine)
    inside = _moved(view, found, flair) > 0.5
    coverage = float(inside[brain_mask].mean())
    _check(path, start, information, coverage)
    data = np.where(inside, data, np.median(data[brain_mask & inside]))
    corrected = correct_bias_field(Image(data, flair.affine), brain_mask)
    return T1w(
        data=corrected.data,
        affine=corrected.affine,
        transform=found,
        start=start,
        mutual_information=information,
        coverage=coverage,
        notes=(*moving.notes, *_notes(start, information, coverage)),
    )


def register_rigidly(
    fixed: Image,
    moving: Image,
    brain_mask: npt.NDArray[np.bool_],
    *,
    seed: int = 0,
    threads: int = 1,
) -> tuple[Array, str, float]:
    """Find the rotation and shift between two images of one head.

    Parameters
    ----------
    fixed, moving
        The FLAIR and the T1w, heads included.
    brain_mask
        (X, Y, Z) of `fixed`.
    seed, threads
        Of elastix.

    Returns
    -------
    affine
        (4, 4) fixed to moving points, mm, RAS+.
    start
        Name of the start it was found from.
    information
        Mutual information in the brain mask, nats, on a grid of 2 mm.

    Raises
    ------
    ProcessingError
        If elastix fails from every start.
    """
    rigid = [rigid_parameters()]
    attempts: list[tuple[float, str, Array]] = []
    failures = []
    with Elastix(threads) as elastix:
        ours, theirs = on_search_grid(fixed), on_search_grid(moving)
        brain = resample(Image(brain_mask, fixed.affine), ours) > 0.5
        rim = ndimage.distance_transform_edt(~brain, sampling=SPACING_MM) <= RIM_MM
        for name, start in _starts(ours, theirs, brain):
            try:
                stages = elastix.register(ours, theirs, rim, rigid, start, seed=seed)
            except ProcessingError as error:
                failures.append(f"{name}: {error}")
                continue
            found = np.asarray(from_elastix(start, stages).affine, dtype=np.float64)
            moved = _moved(theirs, found, ours)
            information = mutual_information(ours.data[brain], moved[brain])
            attempts.append((information, name, found))
            if information >= GOOD_INFORMATION:
                break
    if not attempts:
        raise ProcessingError(
            f"the T1w could not be registered to the FLAIR: {'; '.join(failures)}; look at both "
            "images"
        )
    information, name, found = max(attempts, key=lambda attempt: attempt[0])
    return found, name, information


def rigid_parameters() -> ParameterMap:
    """Read the rigid stage of elastix from the package's data."""
    folder = resources.files("bagau_bids.data") / "registration"
    return read_parameter_file(Path(str(folder / "rigid.txt")))


def on_search_grid(volume: Image) -> Image:
    """Image on a cubic grid of 2 mm, its brightest voxels clipped, scaled from 0 to 1."""
    straight = Grid(volume.shape, orthonormal_affine(volume.affine))
    grid = isotropic_grid(straight, SPACING_MM)
    low, high = np.percentile(volume.data, (0.1, CLIP_PERCENTILE))
    scaled = (np.clip(volume.data, low, high) - low) / max(high - low, 1e-6)
    return Image(resample(smooth(Image(scaled, volume.affine)), grid), grid.affine)


def _starts(
    fixed: Image, moving: Image, brain: npt.NDArray[np.bool_]
) -> Iterator[tuple[str, Array]]:
    """Yield named rigid starts from fixed to moving points, the most likely first."""
    yield "header", np.eye(4)
    ours, theirs = _head_centre(fixed), _head_centre(moving)
    shift = np.eye(4)
    shift[:3, 3] = theirs - ours
    yield "centre of the head", shift
    yield "centre of the head, searched", _rigid(search_start(fixed, moving, ours, theirs), ours)
    centre = fixed.affine[:3, :3] @ np.argwhere(brain).mean(axis=0) + fixed.affine[:3, 3]
    yield "header, searched", _rigid(search_start(fixed, moving, centre, centre), centre)


def _head_centre(volume: Image) -> Array:
    """Middle of the upper part of a head, (3,) mm, RAS+: the neck must not pull at it."""
    place = volume.affine[:3, :3] @ np.argwhere(volume.data > HEAD_SHARE).T
    place += volume.affine[:3, 3:]
    low, high = np.percentile(place, (1, 99), axis=1)
    upper = place[:, place[2] > high[2] - HEAD_HEIGHT_MM]
    low, high = np.percentile(upper, (1, 99), axis=1)
    return (low + high) / 2


def _rigid(matrix: Array, point: Array) -> Array:
    """Nearest rotation and shift to an affine; `point` keeps the place it is taken to."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    result = np.eye(4)
    result[:3, :3] = left @ right
    result[:3, 3] = matrix[:3, :3] @ point + matrix[:3, 3] - result[:3, :3] @ point
    return result


def _moved(image: Image, found: Array, target: OnGrid) -> npt.NDArray[np.float32]:
    return sample(image, forward_field(TemplateTransform(found), target))


def _check(path: Path, start: str, information: float, coverage: float) -> None:
    if coverage < 0.5:
        raise ProcessingError(
            f"{path}: only {100 * coverage:.0f} % of the brain of the FLAIR lies in the field of "
            f"view of this T1w (start: {start}); expected at least half: look at both images"
        )
    if information < FAILED_INFORMATION and start != "same grid":
        raise ProcessingError(
            f"{path}: could not be aligned with the FLAIR: mutual information "
            f"{information:.3f}, expected at least {FAILED_INFORMATION:g}; look at both images: "
            "they may be of different heads, or one is damaged"
        )


def _notes(start: str, information: float, coverage: float) -> tuple[str, ...]:
    notes = []
    if start not in ("same grid", "header"):
        notes.append(f"The headers do not place T1w and FLAIR together; registered from {start}.")
    if information < GOOD_INFORMATION:
        notes.append(
            f"T1w and FLAIR may not be aligned: mutual information {information:.3f}, usual is "
            f"more than {GOOD_INFORMATION:g}."
        )
    if coverage < LEAST_COVERAGE:
        notes.append(f"The T1w shows only {100 * coverage:.0f} % of the brain.")
    return tuple(notes)

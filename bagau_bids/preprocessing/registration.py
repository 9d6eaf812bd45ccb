"""Registration of the template to a FLAIR, and warping between the two.

elastix takes the FLAIR inside its brain mask as fixed image and the template's T1w inside its
brain mask as moving image: an affine stage, then a cubic B-spline stage, driven by mutual
information (Klein et al. 2010, doi:10.1109/TMI.2009.2035616). Poor results are tried again
from other starts; an implausible B-spline is dropped for its affine. What was used and how good
it is goes into the result.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace
from scipy import ndimage, optimize

from bagau_bids.bids.records import Attempt
from bagau_bids.errors import ProcessingError
from bagau_bids.preprocessing.elastix import (
    Elastix,
    ParameterMap,
    read_parameter_file,
)
from bagau_bids.preprocessing.head_direction import HeadDirection, head_direction
from bagau_bids.preprocessing.template import Template
from bagau_bids.preprocessing.transforms import (
    TemplateTransform,
    forward_field,
    from_elastix,
    jacobian_determinant,
    sample,
)
from bagau_bids.processes import both
from bagau_bids.spaces import (
    Grid,
    Image,
    crop,
    isotropic_grid,
    orthonormal_affine,
    resample,
    voxel_sizes,
)

METHODS = ("robust", "paper", "sloppy")

FIXED_SPACING_MM = 2.0  # grid on which elastix sees the FLAIR
# Grid on which elastix sees the template, where not its own of 1 mm: its pyramids take seconds
# less, and the samples are enough for what is left to tell apart.
MOVING_SPACING_MM = {"robust": 1.25, "sloppy": 2.0}
MASK_DILATION_MM = 4.0  # rim of the brain mask kept in the images: the brain's edge guides
EXCLUDED_SHARE = 0.1  # of a voxel of that grid: known lesions reach this far
CLIP_PERCENTILE = 99.5  # of the FLAIR in the brain mask: lesions and vessels above it
SEARCH_SPACING_MM = 6.0  # points of the search for a start
MARGIN_MM = 16.0  # field of view around the brain mask
GOOD_OVERLAP = 0.88  # Dice of the brain masks below which other starts are tried
GOOD_INFORMATION = 0.10  # mutual information in nats, likewise
NEARLY_GOOD_OVERLAP = 0.84
AGREEMENT = 0.01  # of the overlaps of two starts
FAILED_OVERLAP = 0.60  # Dice of the brain masks below which there is no registration
BSPLINE_TRIES = 3  # starts after which an affine that is good enough is taken
FOLDED_FRACTION = 0.005  # of the brain; a B-spline that folds more than this is implausible
TURNED = 1.2  # another direction of the head fits so much better: the header is wrong
WHOLE_BRAIN_ML = 900  # half a head fits as badly in any direction, and is not judged by it
OVERLAP_LOSS = 0.02  # as is one that overlaps less than its affine by more than this

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Registration:
    """The template on a FLAIR's grid.

    Attributes
    ----------
    wm_probseg
        (X, Y, Z) float32, probability of white matter on the FLAIR's grid.
    t1w
        (X, Y, Z) float32, T1w of the template on the FLAIR's grid, zero outside its brain.
    transform
        FLAIR points to template points, mm, RAS+.
    method
        Preset of elastix parameters.
    used
        The attempt that was taken.
    attempts
        All attempts in order.
    notes
        What a user should know: retries, fallbacks, poor overlap.
    head_turn
        How well the template fits in the best other direction, over the header's own; None of
        less than a whole head, which tells nothing of it.
    """

    wm_probseg: npt.NDArray[np.float32]
    t1w: npt.NDArray[np.float32]
    transform: TemplateTransform
    method: str
    used: Attempt
    attempts: tuple[Attempt, ...]
    notes: tuple[str, ...]
    head_turn: float | None = None


@dataclass(frozen=True)
class _Fixed:
    """The FLAIR on elastix's grid.

    Attributes
    ----------
    image
        The brain and a rim.
    brain
        (X, Y, Z) bool, the brain mask.
    excluded
        (X, Y, Z) bool, known lesions: the template has nothing like them, so they are compared
        with nothing.
    """

    image: Image
    brain: npt.NDArray[np.bool_]
    excluded: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _How:
    """How an attempt is made: by whom, with which parameters, seed and number of helpers."""

    elastix: Elastix
    stages: Sequence[ParameterMap]
    seed: int
    helpers: int


@dataclass(frozen=True)
class _TemplateImages:
    """The template around its brain, and the T1w as elastix sees it."""

    moving: Image
    t1w: Image
    brain_mask: Image
    wm_probseg: Image


def register_template(
    flair: Image,
    brain_mask: npt.NDArray[np.bool_],
    template: Template,
    *,
    method: str = "robust",
    seed: int = 0,
    threads: int = 1,
    helpers: int = 1,
    excluded: npt.NDArray[np.bool_] | None = None,
) -> Registration:
    """Register the template to a FLAIR and bring its white-matter map onto the FLAIR's grid.

    Parameters
    ----------
    flair
        Bias corrected; values outside the brain do not matter. Directions that are not quite
        orthogonal are repaired on the grid that elastix sees; points keep their true place.
    brain_mask
        (X, Y, Z) of `flair`.
    template
        Files on one grid.
    method
        ``robust``, ``paper`` (the settings of the BAGAU-Net paper) or ``sloppy`` (for tests).
    seed
        Seed of elastix's sampler. The result is a function of the inputs and the seed.
    threads
        Number of threads of elastix, on which the result depends.
    helpers
        Threads of what goes on before and after elastix, on which it does not.
    excluded
        (X, Y, Z) of `flair`, known lesions: they stay in the brain, and out of every comparison
        of intensities.

    Returns
    -------
    Registration

    Raises
    ------
    ProcessingError
        When the head lies in another direction than the header says, elastix fails from every
        start, or no attempt overlaps the brain.
    InputImageError
        When the directions of the grid are too far from orthogonal.
    """
    if not brain_mask.any():
        raise ProcessingError("the brain mask is empty; registration needs a brain to align")
    stages = load_parameters(method)
    attempts: list[Attempt] = []
    transforms: list[TemplateTransform] = []
    with Elastix(threads) as elastix, ThreadPoolExecutor(1) as beside:
        images, fixed = both(
            lambda: _load_template(template, MOVING_SPACING_MM.get(method)),
            lambda: _fixed(flair, brain_mask, excluded),
            helpers,
        )
        whole = float(fixed.brain.sum()) * FIXED_SPACING_MM**3 / 1000 >= WHOLE_BRAIN_ML
        how = _How(elastix, stages, seed, helpers)
        starts = _starts(fixed, images)
        first = next(starts)
        looking = beside.submit(  # while elastix is at work
            head_direction, fixed.image, fixed.brain, images.t1w, images.brain_mask
        )
        for name, start in itertools.chain((first,), starts):
            attempt, transform = _attempt(name, start, fixed, images, how)
            direction = looking.result()
            if whole:
                _refuse_turned(direction)
            attempts.append(attempt)
            transforms.append(transform)
            if _enough(attempts):
                break
    best = max(range(len(attempts)), key=lambda i: _rank(attempts[i]))
    used = attempts[best]
    if used.overlap < FAILED_OVERLAP:
        tried = "; ".join(f"{a.start}: overlap {a.overlap:.2f} {a.note}" for a in attempts)
        raise ProcessingError(
            f"the template could not be registered: the best brain overlap of {len(attempts)} "
            f"attempts is {used.overlap:.2f}, expected at least {FAILED_OVERLAP} ({tried}); "
            "look at the brain mask and the orientation of the image"
        )
    points = forward_field(transforms[best], flair)
    wm, t1w = (sample(one, points) for one in (images.wm_probseg, images.t1w))
    return Registration(
        wm_probseg=np.clip(wm, 0, 1),
        t1w=t1w,
        transform=transforms[best],
        method=method,
        used=used,
        attempts=tuple(attempts),
        notes=_notes(used, attempts),
        head_turn=direction.ratio if whole else None,
    )


def _refuse_turned(direction: HeadDirection) -> None:
    """Refuse a whole head that plainly lies in another direction than its header says."""
    if direction.ratio > TURNED:
        raise ProcessingError(
            f"the header and the head disagree: {direction.words} (the template fits "
            f"{direction.ratio:.2f} times as well there); expected a header that says how the "
            "head lies, and a head: convert the image again from its source, or set the sform and "
            "its code"
        )


def load_parameters(method: str) -> list[ParameterMap]:
    """Read the affine and the B-spline stage of a preset from the package's data."""
    if method not in METHODS:
        raise ProcessingError(
            f"registration method {method!r} is not known; choose one of {', '.join(METHODS)}"
        )
    folder = resources.files("bagau_bids.data") / "registration"
    return [
        read_parameter_file(Path(str(folder / f"{method}_{stage}.txt")))
        for stage in ("affine", "bspline")
    ]


def _load_template(template: Template, spacing_mm: float | None) -> _TemplateImages:
    """Load the template, its T1w set to zero outside the brain, all cropped to the brain."""
    import nibabel as nib

    volumes = []
    for path in (template.t1w, template.brain_mask, template.wm_probseg):
        image = nib.as_closest_canonical(nib.load(path))
        volumes.append(Image(np.asarray(image.dataobj, dtype=np.float32), image.affine))
    t1w, mask, wm = volumes
    if not t1w.data.shape == mask.data.shape == wm.data.shape:
        raise ProcessingError(
            f"{template.t1w}: found grids of {t1w.data.shape}, {mask.data.shape} and "
            f"{wm.data.shape} in the T1w, brain mask and white-matter map of {template.name}; "
            "expected one grid; fetch the template anew"
        )
    brain = mask.data > 0.5
    t1w = Image(np.where(brain, t1w.data, 0), t1w.affine)
    mask = Image(brain.astype(np.float32), mask.affine)
    box = _bounding_box(brain, margin=8)
    t1w, mask, wm = (crop(volume, box) for volume in (t1w, mask, wm))
    moving = t1w
    if spacing_mm is not None:
        grid = isotropic_grid(t1w, spacing_mm)
        blurred = smooth(t1w, spacing_mm)
        moving = Image(resample(blurred, grid).astype(np.float32), grid.affine)
    return _TemplateImages(moving, t1w, mask, wm)


def _fixed(
    flair: Image, brain_mask: npt.NDArray[np.bool_], excluded: npt.NDArray[np.bool_] | None
) -> _Fixed:
    """Bring FLAIR, brain mask and known lesions onto elastix's grid; nearby voxels count too."""
    if excluded is None or not excluded.any():
        image, brain = brain_image(flair, brain_mask)
        return _Fixed(image, brain, np.zeros_like(brain))
    if not (brain_mask & ~excluded).any():
        raise ProcessingError(
            "the mask of known lesions covers the whole brain mask; registration needs healthy "
            "brain to align: look at both masks"
        )
    image, brain = brain_image(flair, brain_mask, brain_mask & ~excluded)
    blurred = smooth(Image(excluded, flair.affine))
    return _Fixed(image, brain, resample(blurred, image) > EXCLUDED_SHARE)


def brain_image(
    flair: Image,
    brain_mask: npt.NDArray[np.bool_],
    healthy: npt.NDArray[np.bool_] | None = None,
) -> tuple[Image, npt.NDArray[np.bool_]]:
    """Return the FLAIR on an isotropic grid around its brain, and the brain mask there.

    Intensities are clipped, scaled to 1 at the clipping percentile (of the healthy part of the
    brain mask, where that is given), and zero outside the dilated brain mask.
    """
    straight = Grid(flair.shape, orthonormal_affine(flair.affine))
    grid = isotropic_grid(straight, FIXED_SPACING_MM)
    counted = flair.data[brain_mask if healthy is None else healthy]
    clipped = np.clip(flair.data, 0, np.percentile(counted, CLIP_PERCENTILE))
    image = resample(smooth(Image(clipped, flair.affine)), grid)
    mask = resample(Image(brain_mask, flair.affine), grid) > 0.5
    distance = ndimage.distance_transform_edt(~mask, sampling=FIXED_SPACING_MM)
    scaled = np.where(distance <= MASK_DILATION_MM, image, 0) / max(float(image.max()), 1e-6)
    box = _bounding_box(mask, margin=int(MARGIN_MM / FIXED_SPACING_MM))
    return crop(Image(scaled.astype(np.float32), grid.affine), box), mask[box]


def smooth(image: Image, spacing_mm: float = FIXED_SPACING_MM) -> Image:
    """Blur along axes finer than a coming grid, so that resampling averages noise; float32."""
    ratio = spacing_mm / voxel_sizes(image.affine)
    sigma = 0.5 * np.sqrt(np.maximum(ratio**2 - 1, 0))
    return Image(ndimage.gaussian_filter(image.data.astype(np.float32), sigma), image.affine)


def _bounding_box(mask: npt.NDArray[np.bool_], margin: int) -> tuple[slice, ...]:
    return tuple(
        slice(max(int(found.min()) - margin, 0), int(found.max()) + margin + 1)
        for found in np.nonzero(mask)
    )


def _starts(fixed: _Fixed, images: _TemplateImages) -> Iterator[tuple[str, Array]]:
    """Yield named affines from FLAIR to template points, the most likely first."""
    ours = _world_points(Image(fixed.brain, fixed.image.affine))
    theirs = _world_points(images.brain_mask)
    mass = ours.mean(axis=1), theirs.mean(axis=1)
    box = (ours.min(axis=1) + ours.max(axis=1)) / 2, (theirs.min(axis=1) + theirs.max(axis=1)) / 2
    spread = np.clip(theirs.std(axis=1) / ours.std(axis=1), 0.8, 1.25)

    def searched(source: Array, target: Array) -> Array:
        return search_start(fixed.image, images.t1w, source, target, fixed.excluded)

    yield "centre of gravity, searched", searched(*mass)
    yield "centre of gravity", _about(*mass, np.eye(3))
    yield "geometric centre, searched", searched(*box)
    yield "geometric centre", _about(*box, np.eye(3))
    yield "moments", _about(*mass, np.diag(spread))
    for degrees in (-25.0, 25.0):
        yield f"nodding by {degrees:g} degrees", _about(*mass, _rotation(0, degrees))


def search_start(
    fixed: Image,
    moving: Image,
    source: Array,
    target: Array,
    excluded: npt.NDArray[np.bool_] | None = None,
) -> Array:
    """Find a rotation, an isotropic scale and a shift where elastix can start.

    Heads are tilted by up to 40 degrees, mostly nodding, which is beyond what elastix finds
    from the centres alone. All rotations of a coarse grid are tried; the best is improved by
    the simplex method. The score is the mutual information of the two blurred images on points
    6 mm apart, background included, so that the outline of the brain counts.

    Parameters
    ----------
    fixed, moving
        Images that are zero outside the brain.
    source, target
        (3,) points, mm, RAS+, of the fixed and the moving image that belong together.
    excluded
        (X, Y, Z) of `fixed`, what is not compared.

    Returns
    -------
    (4, 4) affine from fixed to moving points, mm, RAS+
    """
    step = round(SEARCH_SPACING_MM / FIXED_SPACING_MM)
    sub = tuple(slice(step // 2, None, step) for _ in range(3))
    ours = ndimage.gaussian_filter(fixed.data, step / 2)[sub]
    index = np.array(np.meshgrid(*(np.arange(n)[sub[0]] for n in fixed.data.shape), indexing="ij"))
    points = fixed.affine[:3, :3] @ index.reshape(3, -1) + fixed.affine[:3, 3:]
    if excluded is not None and excluded.any():
        compared = ~excluded[sub].ravel()
        ours, points = ours.ravel()[compared], points[:, compared]
    theirs = _reduced(moving, SEARCH_SPACING_MM / 2)
    to_index = np.linalg.inv(theirs.affine)
    bins = 16
    level = np.minimum((ours.ravel() / ours.max() * bins).astype(int), bins - 1)
    # Each parameter moves the brain's edge by about as many mm as its value.
    units = np.array([0.8, 0.8, 0.8, 0.012, 1.0, 1.0, 1.0])

    def affine(parameters: Array) -> Array:
        x, y, z, size, *shift = parameters * units
        turn = _rotation(0, x) @ _rotation(1, y) @ _rotation(2, z)
        return _about(source, target + np.asarray(shift), turn * np.exp(size))

    def cost(parameters: Array) -> float:
        place = (to_index @ affine(parameters))[:3]
        values = ndimage.map_coordinates(
            theirs.data, place[:, :3] @ points + place[:, 3:], order=1, output=np.float32
        )
        other = np.minimum((values * bins).astype(int), bins - 1)
        joint = np.bincount(level * bins + other, minlength=bins * bins).reshape(bins, bins)
        return -_information(joint / level.size)

    grids = [
        np.array([x, y, z, size, 0, 0, 0])
        for x, y, z, size in itertools.product(
            np.arange(-40, 41, 10) / units[0],
            (-12 / units[1], 0, 12 / units[1]),
            (-12 / units[2], 0, 12 / units[2]),
            (0.0, 8.0),
        )
    ]
    best = min(grids, key=cost)
    simplex = best + np.vstack([np.zeros(7), 6 * np.eye(7)])
    found = optimize.minimize(
        cost,
        best,
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxfev": 400, "xatol": 0.3, "fatol": 1e-4},
    )
    return affine(found.x)


def _reduced(volume: Image, spacing_mm: float) -> Image:
    """Return a blurred image on a coarser grid, scaled to 1."""
    step = max(1, round(spacing_mm / float(voxel_sizes(volume.affine).mean())))
    data = ndimage.gaussian_filter(volume.data, step)[::step, ::step, ::step]
    scaled = data / max(float(data.max()), 1e-6)
    return Image(scaled, volume.affine @ np.diag([step, step, step, 1.0]))


def _world_points(mask: Image) -> Array:
    return mask.affine[:3, :3] @ np.array(np.nonzero(mask.data)) + mask.affine[:3, 3:]


def _about(source: Array, target: Array, matrix: Array) -> Array:
    """Return the affine with this matrix that takes one point to another."""
    result = np.eye(4)
    result[:3, :3] = matrix
    result[:3, 3] = target - matrix @ source
    return result


def _rotation(axis: int, degrees: float) -> Array:
    angle = np.deg2rad(degrees)
    first, second = (i for i in range(3) if i != axis)
    result = np.eye(3)
    result[first, first] = result[second, second] = np.cos(angle)
    result[first, second], result[second, first] = -np.sin(angle), np.sin(angle)
    return result


def _attempt(
    name: str,
    start: Array,
    fixed: _Fixed,
    images: _TemplateImages,
    how: _How,
) -> tuple[Attempt, TemplateTransform]:
    """Register from one start, and judge the result."""
    rim = round(MASK_DILATION_MM / FIXED_SPACING_MM)
    compared = ndimage.binary_dilation(fixed.brain, iterations=rim) & ~fixed.excluded
    try:
        maps = how.elastix.register(
            fixed.image, images.moving, compared, how.stages, start, seed=how.seed
        )
    except ProcessingError as error:
        return Attempt(name, "failed", note=str(error)), TemplateTransform(start)
    transform = from_elastix(start, maps, how.helpers)
    bspline, affine = both(
        lambda: _judge(name, "bspline", transform, fixed, images),
        lambda: _judge(name, "affine", transform.affine_only(), fixed, images),
        how.helpers,
    )
    reason = _implausible(bspline, affine)
    if reason:
        return replace(affine, note=reason), transform.affine_only()
    return bspline, transform


def _judge(
    name: str,
    stage: str,
    transform: TemplateTransform,
    fixed: _Fixed,
    images: _TemplateImages,
) -> Attempt:
    flair, mask, compared = fixed.image, fixed.brain, fixed.brain & ~fixed.excluded
    points = forward_field(transform, flair)
    warped_mask = sample(images.brain_mask, points) > 0.5
    warped_t1w = sample(images.t1w, points)
    jacobian = jacobian_determinant(Image(points, flair.affine))[mask]
    overlap = 2 * (warped_mask & mask).sum() / (warped_mask.sum() + mask.sum())
    information = mutual_information(flair.data[compared], warped_t1w[compared])
    return Attempt(
        start=name,
        stage=stage,
        overlap=float(overlap),
        mutual_information=information,
        min_jacobian=float(jacobian.min()),
        max_jacobian=float(jacobian.max()),
        folded_fraction=float((jacobian <= 0).mean()),
    )


def mutual_information(
    first: npt.NDArray[np.floating[Any]], second: npt.NDArray[np.floating[Any]], bins: int = 32
) -> float:
    """Return the mutual information of two sets of paired intensities, in nats."""
    return _information(np.histogram2d(first, second, bins=bins)[0] / first.size)


def _information(joint: Array) -> float:
    """Return the mutual information of a joint distribution, in nats."""
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())


def _implausible(bspline: Attempt, affine: Attempt) -> str:
    """Return why a B-spline should be dropped for its affine; empty when it should not."""
    if bspline.folded_fraction > FOLDED_FRACTION:
        return (
            f"B-spline dropped: it folds {100 * bspline.folded_fraction:.2f} % of the brain, "
            f"expected at most {100 * FOLDED_FRACTION:g} %"
        )
    if bspline.overlap < affine.overlap - OVERLAP_LOSS:
        return (
            f"B-spline dropped: brain overlap fell from {affine.overlap:.3f} to "
            f"{bspline.overlap:.3f}"
        )
    if bspline.mutual_information < affine.mutual_information:
        return (
            "B-spline dropped: mutual information fell from "
            f"{affine.mutual_information:.3f} to {bspline.mutual_information:.3f}"
        )
    return ""


def _enough(attempts: Sequence[Attempt]) -> bool:
    """Whether no further start is needed.

    A B-spline that was dropped is tried again from other starts: at the edge of what is
    plausible a few voxels decide, and the affine alone fits much worse. Where B-splines of two
    starts come to the same and nearly good overlap, the brain mask is at fault and no start.
    """
    good = [
        attempt
        for attempt in attempts
        if attempt.overlap >= GOOD_OVERLAP and attempt.mutual_information >= GOOD_INFORMATION
    ]
    if len(good) >= BSPLINE_TRIES or any(attempt.stage == "bspline" for attempt in good):
        return True
    nearly = sorted(
        attempt.overlap
        for attempt in attempts
        if attempt.stage == "bspline"
        and attempt.overlap >= NEARLY_GOOD_OVERLAP
        and attempt.mutual_information >= GOOD_INFORMATION
    )
    return any(two - one <= AGREEMENT for one, two in itertools.pairwise(nearly))


def _rank(attempt: Attempt) -> tuple[bool, float]:
    """Order attempts: those that overlap first, among them by mutual information."""
    overlaps = attempt.overlap >= GOOD_OVERLAP
    return overlaps, attempt.mutual_information if overlaps else attempt.overlap


def _notes(used: Attempt, attempts: Sequence[Attempt]) -> tuple[str, ...]:
    notes = []
    if len(attempts) > 1:
        notes.append(f"registration needed {len(attempts)} starts; took {used.start!r}")
    if used.stage != "bspline":
        notes.append(f"registration fell back to the affine. {used.note}")
    if used.overlap < GOOD_OVERLAP:
        notes.append(f"registration is doubtful: brain overlap {used.overlap:.2f}")
    if used.mutual_information < GOOD_INFORMATION:
        notes.append(f"registration is doubtful: mutual information {used.mutual_information:.3f}")
    return tuple(notes)

"""Where things are in the brain of a FLAIR: ventricles, regions, and areas that ask for a look."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bagau_bids.measures import suspects
from bagau_bids.measures.regions import (
    Ventricles,
    brain_map,
    distance_mm,
    find_ventricles,
    partition,
)
from bagau_bids.preprocessing.template_regions import (
    carry_regions,
    covered_fraction,
    load_template_regions,
)
from bagau_bids.processes import both
from bagau_bids.spaces import Image


@dataclass(frozen=True)
class BrainMap:
    """What `map_brain` found.

    Attributes
    ----------
    ventricles
        The lateral ventricles, and from where they are known.
    regions
        (X, Y, Z) uint8, region of every voxel of the brain, see `measures.regions.partition`.
    told_regions
        (X, Y, Z) uint8, the same where it can be told, the ventricles apart.
    suspects
        Large areas that reach the cortex.
    coverage
        Share of the template's brain in the field of view.
    """

    ventricles: Ventricles
    regions: npt.NDArray[np.uint8]
    told_regions: npt.NDArray[np.uint8]
    suspects: tuple[suspects.Suspect, ...]
    coverage: float


def map_brain(
    flair: Image,
    brain_mask: npt.NDArray[np.bool_],
    wm_probseg: npt.NDArray,
    points: Image,
    known_lesions: npt.NDArray[np.bool_] | None,
    rule: str,
    threads: int = 1,
) -> BrainMap:
    """Outline the ventricles of a FLAIR, and tell the regions of its brain apart.

    Parameters
    ----------
    flair
        Bias corrected, axes in RAS order.
    brain_mask, wm_probseg
        (X, Y, Z), the latter of the registered template, 0 to 1.
    points
        (3, I, J, K), as by `bagau_bids.preprocessing.transforms.lattice_field`.
    known_lesions
        (X, Y, Z); their cavities are no ventricles, and they do not ask for a look.
    rule
        What is periventricular, one of `bagau_bids.config.PERIVENTRICULAR_RULES`.
    threads
        That share the work; the result does not depend on them.
    """
    template = load_template_regions()
    numbers, right = carry_regions(template, points, flair, threads)
    groups = Image(numbers, flair.affine)
    tissue = brain_mask if known_lesions is None else brain_mask & ~known_lesions
    ventricles = find_ventricles(flair, tissue, wm_probseg, numbers)
    anatomy = suspects.Anatomy(
        brain_mask=tissue,
        ventricles=ventricles.mask,
        groups=numbers,
        right=right,
        to_template=suspects.fit_template(points),
        white_matter=suspects.white_matter_level(flair.data, tissue, wm_probseg),
    )

    def divide() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        distance = distance_mm(ventricles.mask, flair.affine)
        regions = partition(groups, right, brain_mask, distance, rule)
        return regions, brain_map(regions, ventricles.mask, distance)

    def look() -> tuple[tuple[suspects.Suspect, ...], float]:
        coverage = covered_fraction(template, points, groups)
        return suspects.find_suspects(flair, anatomy), coverage

    (regions, told_regions), (found, coverage) = both(divide, look, threads)
    return BrainMap(ventricles, regions, told_regions, found, coverage)

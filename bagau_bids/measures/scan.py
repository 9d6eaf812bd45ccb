"""All measures of one scan: its masks, lesions, tables, quality figures and what to look at."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bagau_bids.measures import plausibility
from bagau_bids.measures.flags import Flag, quality_table, raised_flags
from bagau_bids.measures.infarcts import Found, find
from bagau_bids.measures.quality import (
    Figures,
    Registered,
    scan_quality,
)
from bagau_bids.measures.regions import (
    lookup_table,
)
from bagau_bids.measures.suspects import Suspect, places_in_words, suspect_figures
from bagau_bids.measures.wmh import Head, measure_wmh
from bagau_bids.spaces import Image

NO_VENTRICLES = (
    "The scan has no lateral ventricles: regions that follow from the distance to them, and the "
    "Fazekas grades, are n/a."
)
KNOWN_OUTSIDE = (
    "The mask of known lesions lies outside the brain mask: it takes nothing from the WMH; look "
    "whether it belongs to this FLAIR."
)
NOTED_ML = 0.1
UNASKED = (
    "{:.2f} ml are an infarct to the network and not counted as WMH; --infarct puts them out as a "
    "mask, a probability and a volume."
)


@dataclass(frozen=True)
class Maps:
    """A preprocessed FLAIR and what is known of its voxels, all (X, Y, Z) on one grid.

    Parameters
    ----------
    flair : Image
        Bias corrected, axes in RAS order; its grid is that of all others.
    brain_mask, ventricles : bool arrays
    wm_probseg, template_t1w : arrays
        White matter, 0 to 1, and T1w of the registered template.
    regions : uint8 array
        As by `measures.regions.partition`.
    known_lesions : bool array or None
        What is no WMH; None where nobody named any.
    template_points : Image
        As in `measures.lesions.Anatomy`.
    """

    flair: Image
    brain_mask: NDArray[np.bool_]
    ventricles: NDArray[np.bool_]
    wm_probseg: NDArray
    template_t1w: NDArray
    regions: NDArray[np.uint8]
    known_lesions: NDArray[np.bool_] | None
    template_points: Image


@dataclass(frozen=True)
class Noticed:
    """What came to light while the scan was prepared.

    Parameters
    ----------
    registered : Registered
        What the registration says of itself.
    suspects : tuple of Suspect
        Large areas at the cortex, the largest of each kind first.
    sidecar_signs : tuple of str
        What the metadata say against a FLAIR.
    clipped_share : float or None
        Of the brain, at one brightest value.
    head_turn : float or None
        How well the template fits in the best other direction, over the header's own.
    mirrored_dice : float or None
        Of what the networks find in the FLAIR alone and in its mirror image alone.
    """

    registered: Registered
    suspects: tuple[Suspect, ...] = ()
    sidecar_signs: tuple[str, ...] = ()
    clipped_share: float | None = None
    head_turn: float | None = None
    mirrored_dice: float | None = None


@dataclass(frozen=True)
class Measured:
    """The measures of one scan.

    Parameters
    ----------
    found : Found
        Masks of WMH and infarcts.
    lesions : (X, Y, Z) int array
        Lesions of the WMH, numbered from 1.
    wmh_regions : (X, Y, Z) uint8 array
        Region of each voxel of the WMH where it can be told, else 0.
    tables : dict of DataFrame
        ``volumes_table``, ``lesions_table``, ``regions_table`` (what `wmh_regions` means),
        ``fazekas_table`` and ``quality_table``.
    figures : Figures
        Of quality.
    flags : tuple of Flag
        Those of the figures that ask for a look.
    infarct_ml : float or None
        Volume of what the network calls infarct; None where no network tells it.
    notes : tuple of str
        What a user should know.
    """

    found: Found
    lesions: NDArray
    wmh_regions: NDArray[np.uint8]
    tables: dict[str, pd.DataFrame]
    figures: Figures
    flags: tuple[Flag, ...]
    infarct_ml: float | None
    notes: tuple[str, ...]


def measure_scan(
    maps: Maps,
    probability: NDArray,
    infarct_probability: NDArray | None,
    noticed: Noticed,
    *,
    threshold: float,
    min_size_mm3: float,
    rule: str,
    infarct_wanted: bool,
) -> Measured:
    """Turn probabilities into masks, and measure these.

    Parameters
    ----------
    maps : Maps
    probability, infarct_probability : (X, Y, Z) arrays
        Of WMH and infarct on the same grid; None where no network tells infarcts.
    noticed : Noticed
    threshold, min_size_mm3, infarct_wanted
        As for `measures.infarcts.find`.
    rule : str
        Of what is periventricular: that of the regions.
    """
    found = find(
        Image(probability, maps.flair.affine),
        infarct_probability,
        threshold=threshold,
        min_size_mm3=min_size_mm3,
        wanted=infarct_wanted,
    )
    # Neither infarcts nor known lesions are normal white matter, or WMH that one doubts.
    healthy = np.where(found.infarct, 0, maps.wm_probseg)
    if maps.known_lesions is not None:
        healthy[maps.known_lesions] = 0
    figures = _figures(maps, found, probability, healthy, noticed)
    head = Head(
        flair=maps.flair,
        brain_mask=maps.brain_mask,
        ventricles=maps.ventricles,
        healthy=healthy,
        probability=probability,
        regions=maps.regions,
        others={"infarct": found.reported, "known_lesion": maps.known_lesions},
        template_points=maps.template_points,
    )
    wmh = measure_wmh(found.wmh, head, rule)
    infarct_ml = found.infarct_ml(maps.flair.affine)
    return Measured(
        found=found,
        lesions=wmh.lesions,
        wmh_regions=wmh.regions,
        tables={
            **wmh.tables,
            "regions_table": lookup_table(rule),
            "quality_table": quality_table(figures),
        },
        figures=figures,
        flags=raised_flags(figures, places_in_words(noticed.suspects)),
        infarct_ml=infarct_ml,
        notes=tuple(_notes(maps, wmh.ventricles_seen, None if infarct_wanted else infarct_ml)),
    )


def _figures(
    maps: Maps, found: Found, probability: NDArray, healthy: NDArray, noticed: Noticed
) -> Figures:
    """All figures of quality; `healthy` is the probability of normal white matter."""
    figures = scan_quality(
        maps.flair,
        maps.brain_mask,
        healthy,
        found.wmh,
        np.where(found.infarct, 0, probability),
        noticed.registered,
    )
    evidence = plausibility.Evidence(
        csf_to_wm=figures.csf_to_wm,
        entropy=figures.wmh_entropy,
        sidecar_signs=noticed.sidecar_signs,
    )
    return replace(
        figures,
        **suspect_figures(noticed.suspects),
        **plausibility.contrast_figures(
            maps.flair.data, maps.brain_mask, maps.wm_probseg, maps.template_t1w, evidence
        ),
        clipped_share=noticed.clipped_share,
        head_turn=noticed.head_turn,
        mirrored_dice=noticed.mirrored_dice,
        slice_tilt_degrees=plausibility.slice_tilt_degrees(maps.flair.affine),
    )


def _notes(maps: Maps, seen: bool, unasked_ml: float | None) -> Iterator[str]:
    """Say what a user should know; `unasked_ml` is the volume of infarcts nobody asked for."""
    if not seen:
        yield NO_VENTRICLES
    known = maps.known_lesions
    if known is not None and known.any() and not (known & maps.brain_mask).any():
        yield KNOWN_OUTSIDE
    if unasked_ml is not None and unasked_ml >= NOTED_ML:
        yield UNASKED.format(unasked_ml)

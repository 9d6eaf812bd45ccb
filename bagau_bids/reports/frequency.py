"""The lesion frequency map: how often a place of the template is WMH, over participants."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from bagau_bids.bids.derivatives import bids_uri, catalogue, sidecar_path
from bagau_bids.errors import ProcessingError
from bagau_bids.files import remove_stale, write_bytes, write_json
from bagau_bids.preprocessing.template_masks import MNI_2MM, LesionFrequency
from bagau_bids.preprocessing.transforms import (
    TemplateTransform,
    inverse_field,
    read_itk_forward,
    sample,
)
from bagau_bids.reports import figures
from bagau_bids.reports.pages import Layer, Picture, embed
from bagau_bids.reports.results import ScanResults, load_image, load_image_on
from bagau_bids.spaces import Image

SLICES = 15
BACKGROUND_SCANS = 6  # FLAIRs whose mean is shown below the map
FIELD_STEP_MM = 8.0  # between points of them that are mapped: fine enough for a picture


@dataclass(frozen=True)
class FrequencyMap:
    """One map that was written.

    Parameters
    ----------
    path : Path
        The image; its description lies beside it.
    picture : Picture
    problems : tuple of str
        Scans that are not in it, and why.
    """

    path: Path
    picture: Picture | None
    problems: tuple[str, ...]


def write_frequency_maps(output_dir: Path, scans: Sequence[ScanResults]) -> list[FrequencyMap]:
    """Write a lesion frequency map for each template that the scans were registered to.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    scans : sequence of ScanResults
        Complete scans, one a participant.

    Returns
    -------
    list of FrequencyMap
        A map that no scan could be added to is not written, and has no picture; one of an
        earlier run is removed.
    """
    by_template: dict[str, list[ScanResults]] = {}
    for scan in scans:
        by_template.setdefault(scan.template, []).append(scan)
    maps = [_write_map(output_dir, name, own) for name, own in sorted(by_template.items())]
    made = {one.path for one in maps if one.picture}
    pattern = catalogue().group["frequency"].name.format(template="*")
    for path in sorted(set(output_dir.glob(pattern)) - made):
        remove_stale([path, sidecar_path(path)], "no complete scan is left that belongs to it")
    return maps


def _write_map(output_dir: Path, template: str, scans: Sequence[ScanResults]) -> FrequencyMap:
    gathered, used, problems = LesionFrequency(), [], []
    for scan in scans:
        try:
            gathered.add(load_image(scan.path("wmh_mask")), read_transform(scan))
            used.append(scan)
        except ProcessingError as error:
            problems.append(f"{scan.stem}_FLAIR is not in the lesion frequency map: {error}")
    described = catalogue().group["frequency"]
    path = output_dir / described.name.format(template=template)
    if not used:
        return FrequencyMap(path, None, tuple(problems))
    frequency = gathered.frequency()
    write_bytes(path, _image_bytes(Image(frequency, gathered.grid.affine)))
    sidecar = {
        **described.sidecar,
        "NumberOfParticipants": len(used),
        "Sources": [bids_uri("", s.path("wmh_mask").relative_to(output_dir)) for s in used],
    }
    write_json(sidecar_path(path), sidecar)
    return FrequencyMap(path, _picture(path, template, frequency, used), tuple(problems))


def read_transform(scan: ScanResults) -> TemplateTransform:
    """Read a scan's transform, FLAIR to template points.

    Raises
    ------
    ProcessingError
        If the file is missing or cannot be read.
    """
    path = scan.path("template_to_flair_xfm")
    if not path.is_file():
        raise ProcessingError(
            f"{path}: no such file; expected the transform that the participant level writes: "
            "process the scan again"
        )
    try:
        return read_itk_forward(path)
    except (RuntimeError, ValueError) as error:
        raise ProcessingError(
            f"{path}: cannot be read as an ITK transform ({_last_line(error)}); process the scan "
            "again"
        ) from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _image_bytes(image: Image) -> bytes:
    """Content of a compressed image in MNI space, the same for the same data."""
    stored = nib.Nifti1Image(image.data, image.affine)
    stored.header.set_xyzt_units("mm")
    stored.set_sform(image.affine, code="mni")
    stored.set_qform(image.affine, code="mni")
    return gzip.compress(stored.to_bytes(), mtime=0)


def _picture(
    path: Path, template: str, frequency: np.ndarray, scans: Sequence[ScanResults]
) -> Picture:
    """Map in colours over the mean FLAIR."""
    grid = MNI_2MM
    background = _mean_flair(scans)
    region = background > 0
    if not region.any():
        region = frequency > 0
    slices = figures.busiest_slices(frequency > 0, 2, SLICES)
    slices = slices or figures.spread_slices(region, 2, SLICES)
    layout = figures.mosaic([(2, slices)], region, grid.affine, columns=5)
    window = figures.display_window(background, region)
    highest = max(float(frequency.max()), 1 / len(scans))
    heat = figures.draw_heat(
        layout,
        frequency,
        lowest=min(0.5 / len(scans), highest / 2),
        highest=highest,
        title="share of participants",
    )
    n, shown = len(scans), min(len(scans), BACKGROUND_SCANS)
    caption = (
        f"Share of {n} participant{'s' if n > 1 else ''}, with the first complete scan of each, "
        f"whose mask of WMH covers a place of {template} (2 mm voxels), of those whose scan "
        f"reaches there. At most {100 * float(frequency.max()):.0f} % share a place. Behind it "
        f"{f'the mean FLAIR of {shown} of them' if shown > 1 else 'the FLAIR of one of them'}."
    )
    return embed(
        (f"frequency-{template}", "Lesion frequency", caption),
        figures.draw_slices(layout, background, window),
        [Layer("frequency", "lesion frequency", heat)],
        without="FLAIR only",
        saved=(path.name,),
    )


def _mean_flair(scans: Sequence[ScanResults]) -> np.ndarray:
    """Mean of some FLAIRs in the template's space, each divided by its median in the brain.

    Zero outside the brain. FLAIRs that cannot be read are passed over: they are complete scans
    whose mask is in the map, and this is but the background of a picture.
    """
    grid = MNI_2MM
    total = np.zeros(grid.shape, dtype=np.float32)
    weight = np.zeros(grid.shape, dtype=np.float32)
    for scan in scans[:BACKGROUND_SCANS]:
        try:
            flair = load_image(scan.path("preproc_flair"))
            brain = load_image_on(scan.path("brain_mask"), flair)
            transform = read_transform(scan)
        except ProcessingError:
            continue
        if not brain.any():
            continue
        level = max(float(np.median(flair.data[brain != 0])), 1e-6)
        shown = np.where(brain != 0, flair.data, 0) / level
        points = inverse_field(transform, grid, FIELD_STEP_MM)
        total += sample(Image(shown, flair.affine), points)
        weight += sample(Image(brain != 0, flair.affine), points)
    return np.where(weight >= 0.5 * max(float(weight.max()), 1), total / np.maximum(weight, 1), 0)

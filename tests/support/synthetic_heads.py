"""A tiny whole-head label map, lesion masks on its grid, and a stand-in for the registration."""

from dataclasses import replace

import nibabel as nib
import numpy as np

from bagau_bids.bids.records import Attempt
from bagau_bids.preprocessing.registration import Registration
from bagau_bids.preprocessing.transforms import TemplateTransform
from bagau_bids.synthesis import heads
from bagau_bids.synthesis.deformation import PoseSettings

SHAPE, SPACING_MM = (44, 54, 48), 4.0

STILL = PoseSettings(
    rotation_sd_deg=(0, 0, 0),
    scale_sd=0,
    shear_sd=0,
    translation_sd_mm=0,
    mirror_probability=0,
    elastic_amplitude_mm=(0, 0),
    tilt_probability=0,
)

# No load of another kind, and no lesion outside the cerebral white matter.
MIXTURE = {
    "small_probability": 0,
    "heavy_probability": 0,
    "infratentorial_probability": 0,
    "grey_probability": 0,
    "juxtacortical_probability": 0,
}


def ball(centre, radii):
    axes = np.ogrid[tuple(slice(n) for n in SHAPE)]
    return sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) <= 1


def affine():
    matrix = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    matrix[:3, 3] = -88, -108, -96
    return matrix


def labels():
    """Shells of scalp, skull, CSF, cortex and white matter, with two ventricles and a stem."""
    found, centre = np.zeros(SHAPE, np.int16), (22, 27, 24)
    for label, radii in (
        (511, (19, 24, 21)),
        (515, (18, 23, 20)),
        (24, (17, 22, 19)),
        (3, (16, 21, 18)),
        (2, (14, 19, 16)),
    ):
        found[ball(centre, radii)] = label
    found[ball((19, 27, 25), (2, 7, 2.5))] = 4
    found[ball((25, 27, 25), (2, 7, 2.5))] = 43
    found[ball((22, 22, 12), (3, 3, 3))] = 16
    return found


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, affine()).to_filename(path)
    return path


def write_inputs(folder):
    """Two label maps and three masks with 1, 2 and 3 lesions in white matter."""
    maps = [save(folder / "maps" / f"head{n}.nii.gz", labels()) for n in (1, 2)]
    masks = []
    for number in (1, 2, 3):
        mask = np.zeros(SHAPE, np.uint8)
        for lesion in range(number):
            mask[ball((14, 18 + 8 * lesion, 26), (1.5, 1.5, 1.5))] = 1
        masks.append(save(folder / "masks" / f"patient{number:02d}_mask.nii.gz", mask))
    return maps, masks


def coarse(settings, pixel_mm):
    """Change settings of the synthesis to thick slices of such pixels, or of 1 mm larger ones."""
    acquisition = replace(
        settings.acquisition,
        isotropic_probability=0,
        in_plane_mm=(pixel_mm, pixel_mm + 1),
        slice_spacing_mm=(7.0, 8.0),
        working_mm=pixel_mm,
    )
    return replace(settings, acquisition=acquisition)


def draw_coarsely(monkeypatch):
    """Draw thick slices of large pixels, which takes a moment only."""
    settings = coarse(heads.pool_settings(), 3.0)
    monkeypatch.setattr(heads, "pool_settings", lambda: settings)


def register_nothing(monkeypatch):
    """Say that every head lies in the template's space; return the calls, one entry each."""
    calls = []

    def register_template(flair, brain_mask, template, *, threads):
        calls.append(flair.data.shape)
        white = (np.abs(flair.data - 1.0) < 0.1).astype(np.float32)
        used = Attempt("fake", "affine")
        transform = TemplateTransform(np.eye(4))
        return Registration(white, white, transform, "robust", used, (used,), ())

    monkeypatch.setattr(heads, "register_template", register_template)
    return calls

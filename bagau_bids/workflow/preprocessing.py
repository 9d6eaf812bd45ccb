"""The steps before the network: one nipype interface a step, which loads, calls, saves."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File, InputMultiObject, isdefined, traits
from numpy.typing import NDArray

from bagau_bids.config import PERIVENTRICULAR_RULES
from bagau_bids.errors import InputImageError, ProcessingError
from bagau_bids.preprocessing.recipe import PREPROCESSING_VERSION
from bagau_bids.spaces import reorient, same_grid
from bagau_bids.workflow.step import (
    Step,
    StepInputSpec,
    StepOutputSpec,
    TissueInputSpec,
    known_lesions_of,
    load_image,
    load_on_grid,
    set_torch_threads,
    without,
)

OUTLINED = "Brain, outlined on the FLAIR by a network."
FOREGROUND = (
    "Foreground of the FLAIR, which came without its skull: the voxels that do not have the value "
    "of the background, their largest component, holes filled."
)


class RecipeInputSpec(StepInputSpec):
    """Inputs of a step of the recipe that trainings share."""

    recipe = traits.Str(PREPROCESSING_VERSION, usedefault=True, desc="version of its results")


class ConformInputSpec(RecipeInputSpec):
    """Inputs of `Conform`."""

    in_file = File(exists=True, mandatory=True, desc="FLAIR as it is in the data set")
    lesion_file = File(exists=True, desc="mask of known lesions as the user made it")
    lesion_note = traits.Str(usedefault=True, desc="how it was chosen, if there were several")
    sidecars = InputMultiObject(File(exists=True), desc="JSON files that apply to it")


class ConformOutputSpec(StepOutputSpec):
    """Outputs of `Conform`."""

    flair = File(exists=True, desc="one finite 3-D volume, RAS+ voxel order, float32")
    known_lesions = File(desc="known lesions on the same grid, uint8; only where a mask is given")


class Conform(Step):
    """Check a FLAIR and read it into one volume; see `bagau_bids.preprocessing.conform`."""

    input_spec = ConformInputSpec
    output_spec = ConformOutputSpec
    name = "conform"
    memory_gb = 0.5

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.bids.acquisition import read_sidecars, signs_of_another_sequence
        from bagau_bids.preprocessing.conform import conform

        scan = conform(Path(self.inputs.in_file))
        sidecars = self.inputs.sidecars if isdefined(self.inputs.sidecars) else []
        signs = signs_of_another_sequence(read_sidecars([Path(path) for path in sidecars]))
        self._save("flair", folder, scan.data, scan.affine, np.float32)
        self._results["derivatives"]["conformed_flair"] = self._results["flair"]
        said = [f"The metadata say {'; '.join(signs)}: is it a FLAIR?"] if signs else []
        record = {
            "notes": (*scan.notes, *said),
            "sidecar_signs": signs,
            "shape": scan.data.shape,
            "spacing_mm": nib.affines.voxel_sizes(scan.affine),
            "stored_axes": scan.stored_axes,
            "tilt_degrees": np.rad2deg(nib.affines.obliquity(scan.affine)).max(),
        }
        if isdefined(self.inputs.lesion_file):
            lesions, notes = self._known_lesions(folder, scan.data.shape, scan.affine)
            record |= {"known_lesions": lesions, "notes": (*scan.notes, *said, *notes)}
        return record

    def _known_lesions(
        self, folder: Path, shape: tuple[int, int, int], affine: NDArray
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Bring the known lesions onto the FLAIR's grid; return their record and notes."""
        from bagau_bids.measures.lesions import voxel_volume_mm3
        from bagau_bids.preprocessing.known_lesions import known_lesions_on

        path = Path(self.inputs.lesion_file)
        found = known_lesions_on(path, shape, affine)
        self._derive("known_lesion_mask", folder, found.mask, affine, "known_lesions")
        volume_ml = np.count_nonzero(found.mask) * voxel_volume_mm3(affine) / 1000
        taken = f"Known lesions of {volume_ml:.2f} ml are those of {path}; they are no WMH."
        chosen = self.inputs.lesion_note or taken
        return {
            "file": path.name,
            "resampled": found.resampled,
            "volume_ml": round(volume_ml, 3),
        }, (chosen, *found.notes)


class BrainMaskInputSpec(RecipeInputSpec):
    """Inputs of `BrainMask`."""

    flair = File(exists=True, mandatory=True, desc="conformed FLAIR")
    skull_strip = traits.Enum("auto", "skip", usedefault=True, desc="skip: already stripped")
    mask_file = File(exists=True, desc="brain mask from elsewhere, on the FLAIR's grid")
    network = traits.Str(usedefault=True, desc="SHA-256 of the network's weights")


class BrainMaskOutputSpec(StepOutputSpec):
    """Outputs of `BrainMask`."""

    brain_mask = File(exists=True, desc="uint8, conformed grid")


class BrainMask(Step):
    """Outline the brain: by the network, from a file, or as the non-zero voxels."""

    input_spec = BrainMaskInputSpec
    output_spec = BrainMaskOutputSpec
    name = "brain_mask"
    memory_gb = 0.8
    threaded = True

    def _process(self, folder: Path) -> dict[str, Any]:
        flair, affine = load_image(self.inputs.flair)
        if isdefined(self.inputs.mask_file):
            mask, record = mask_from_file(Path(self.inputs.mask_file), flair.shape, affine)
        elif self.inputs.skull_strip == "skip":
            mask = flair != 0
            record = {
                "method": "non-zero voxels",
                "stripped": True,
                "notes": (),
                "description": "Voxels of the skull-stripped FLAIR that are not zero.",
            }
        else:
            from bagau_bids.preprocessing.brain_mask import brain_mask

            set_torch_threads(self.inputs.num_threads)
            found = brain_mask(flair, affine)
            mask = found.mask
            record = {
                "method": "foreground" if found.stripped else "network",
                "network_sha256": self.inputs.network,
                "stripped": found.stripped,
                "notes": found.notes,
                "description": FOREGROUND if found.stripped else OUTLINED,
            }
        if not mask.any():
            raise ProcessingError(
                f"{self.inputs.flair}: the brain mask is empty; expected a FLAIR of a head: look "
                "at the image, or give a mask with --derivatives"
            )
        from bagau_bids.preprocessing.intensities import clipped_share

        self._derive("brain_mask", folder, mask, affine, "brain_mask")
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        return {
            **record,
            "volume_ml": round(float(mask.sum() * voxel_ml), 1),
            "clipped_share": clipped_share(flair, mask),
        }


class BiasFieldInputSpec(RecipeInputSpec, TissueInputSpec):
    """Inputs of `BiasField`."""

    flair = File(exists=True, mandatory=True, desc="conformed FLAIR")
    brain_mask = File(exists=True, mandatory=True)


class BiasFieldOutputSpec(StepOutputSpec):
    """Outputs of `BiasField`."""

    corrected = File(exists=True, desc="FLAIR without its bias field, float32")


class BiasField(Step):
    """Correct intensity non-uniformity inside the brain."""

    input_spec = BiasFieldInputSpec
    output_spec = BiasFieldOutputSpec
    name = "bias_field"
    memory_gb = 0.8
    threaded = True

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.preprocessing.bias_field import correct_bias_field

        flair, affine = load_image(self.inputs.flair)
        mask = load_on_grid(self.inputs.brain_mask, flair.shape, affine) > 0
        known = known_lesions_of(self.inputs, flair.shape, affine)
        corrected = correct_bias_field(flair, affine, without(mask, known))
        self._derive("preproc_flair", folder, corrected, affine, "corrected")
        return {"method": "N4", "notes": ()}


class RegistrationInputSpec(RecipeInputSpec, TissueInputSpec):
    """Inputs of `Registration`."""

    corrected = File(exists=True, mandatory=True, desc="bias-corrected FLAIR, conformed grid")
    brain_mask = File(exists=True, mandatory=True)
    template = traits.Str(mandatory=True, desc="name of the template")
    template_t1w = File(exists=True, mandatory=True)
    template_wm_probseg = File(exists=True, mandatory=True)
    template_brain_mask = File(exists=True, mandatory=True)
    method = traits.Str("robust", usedefault=True, desc="preset of elastix parameters")
    seed = traits.Int(0, usedefault=True, desc="of elastix's sampler")


class RegistrationOutputSpec(StepOutputSpec):
    """Outputs of `Registration`."""

    wm_probseg = File(exists=True, desc="template's white matter on the FLAIR, float32")
    warped_t1w = File(exists=True, desc="template's T1w on the FLAIR, brain only, float32")
    template_to_flair_xfm = File(exists=True, desc="resamples the template onto the FLAIR")
    template_points = File(
        exists=True, desc="place in the template (mm, RAS+) of a lattice over the FLAIR, 4-D"
    )


class Registration(Step):
    """Register the template to the FLAIR and carry its white matter map over."""

    input_spec = RegistrationInputSpec
    output_spec = RegistrationOutputSpec
    name = "registration"
    memory_gb = 1.5
    threaded = True

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.preprocessing.registration import register_template
        from bagau_bids.preprocessing.template import Template
        from bagau_bids.preprocessing.transforms import (
            lattice_field,
            write_itk_forward,
            write_itk_inverse,
        )

        flair, affine = load_image(self.inputs.corrected)
        mask = load_on_grid(self.inputs.brain_mask, flair.shape, affine) > 0
        template = Template(
            name=self.inputs.template,
            t1w=Path(self.inputs.template_t1w),
            wm_probseg=Path(self.inputs.template_wm_probseg),
            brain_mask=Path(self.inputs.template_brain_mask),
        )
        result = register_template(
            flair,
            affine,
            mask,
            template,
            method=self.inputs.method,
            seed=self.inputs.seed,
            threads=self.inputs.num_threads,
            excluded=known_lesions_of(self.inputs, flair.shape, affine),
        )
        self._derive("wm_atlas", folder, result.wm_probseg, affine, "wm_probseg")
        self._save("warped_t1w", folder, result.t1w, affine, np.float32)
        forward = folder / "template_to_flair_xfm.h5"
        write_itk_forward(result.transform, forward)
        inverse = folder / "flair_to_template_xfm.h5"
        grid = nib.Nifti1Image.from_filename(template.t1w)
        write_itk_inverse(result.transform, grid.shape, grid.affine, inverse)
        points, lattice = lattice_field(result.transform, flair.shape, affine)
        self._save("template_points", folder, np.moveaxis(points, 0, -1), lattice, np.float32)
        self._results["template_to_flair_xfm"] = str(forward)
        self._results["derivatives"] |= {
            "warped_t1w": self._results["warped_t1w"],
            "template_to_flair_xfm": str(forward),
            "flair_to_template_xfm": str(inverse),
        }
        return {**result.quality, "seed": self.inputs.seed, "threads": self.inputs.num_threads}


class T1wInputSpec(RecipeInputSpec):
    """Inputs of `T1w`."""

    in_file = File(exists=True, mandatory=True, desc="T1w as it is in the data set")
    flair = File(exists=True, mandatory=True, desc="conformed FLAIR")
    brain_mask = File(exists=True, mandatory=True)
    note = traits.Str(usedefault=True, desc="how the T1w was chosen, if there were several")
    seed = traits.Int(0, usedefault=True, desc="of elastix's sampler")


class T1wOutputSpec(StepOutputSpec):
    """Outputs of `T1w`."""

    t1w = File(exists=True, desc="T1w on the conformed grid, bias corrected, float32")


class T1w(Step):
    """Bring the T1w onto the FLAIR's grid; see `bagau_bids.preprocessing.t1w`."""

    input_spec = T1wInputSpec
    output_spec = T1wOutputSpec
    name = "t1w"
    memory_gb = 1.5
    threaded = True

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.preprocessing.t1w import t1w_on_flair

        flair, affine = load_image(self.inputs.flair)
        mask = load_on_grid(self.inputs.brain_mask, flair.shape, affine) > 0
        result = t1w_on_flair(
            Path(self.inputs.in_file),
            flair,
            affine,
            mask,
            seed=self.inputs.seed,
            threads=self.inputs.num_threads,
        )
        self._save("t1w", folder, result.data, affine, np.float32)
        quality = result.quality
        notes = [note for note in (self.inputs.note, *quality["notes"]) if note]
        return {**quality, "notes": notes, "file": Path(self.inputs.in_file).name}


class RegionsInputSpec(TissueInputSpec):
    """Inputs of `Regions`."""

    corrected = File(exists=True, mandatory=True, desc="bias-corrected FLAIR, conformed grid")
    brain_mask = File(exists=True, mandatory=True)
    wm_probseg = File(exists=True, mandatory=True, desc="template's white matter on the FLAIR")
    template_points = File(exists=True, mandatory=True, desc="as `Registration` puts it out")
    rule = traits.Enum(*PERIVENTRICULAR_RULES, mandatory=True, desc="what is periventricular")


class RegionsOutputSpec(StepOutputSpec):
    """Outputs of `Regions`."""

    ventricles = File(exists=True, desc="lateral ventricles, uint8, conformed grid")
    regions = File(exists=True, desc="region of every voxel of the brain, uint8, same grid")


class Regions(Step):
    """Outline the ventricles, and tell the regions of the brain apart."""

    input_spec = RegionsInputSpec
    output_spec = RegionsOutputSpec
    name = "regions"
    memory_gb = 1.2

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.measures import regions, suspects
        from bagau_bids.preprocessing.template_regions import (
            carry_regions,
            covered_fraction,
            load_template_regions,
        )

        flair, affine = load_image(self.inputs.corrected)
        brain = load_on_grid(self.inputs.brain_mask, flair.shape, affine) > 0
        wm_probseg = load_on_grid(self.inputs.wm_probseg, flair.shape, affine)
        points, lattice = load_image(self.inputs.template_points)
        template, points = load_template_regions(), np.moveaxis(points, -1, 0)
        groups, right = carry_regions(template, points, lattice, flair.shape, affine)
        known = known_lesions_of(self.inputs, flair.shape, affine)
        tissue = without(brain, known)  # a cavity is no ventricle
        found = regions.find_ventricles(flair, affine, tissue, wm_probseg, groups)
        distance = regions.distance_mm(found.mask, affine)
        numbers = regions.partition(groups, right, brain, distance, affine, self.inputs.rule)
        self._derive("ventricle_mask", folder, found.mask, affine, "ventricles")
        self._save("regions", folder, numbers, affine, np.uint8)
        brain_regions = regions.brain_map(numbers, found.mask, distance)
        self._derive("brain_regions_dseg", folder, brain_regions, affine)
        lookup = regions.brain_lookup_table(self.inputs.rule)
        self._tabulate("brain_regions_table", folder, lookup)
        anatomy = suspects.Anatomy(
            brain_mask=tissue,  # nor does what is known ask for a look
            ventricles=found.mask,
            groups=groups,
            right=right,
            to_template=suspects.fit_template(points, lattice),
            white_matter=suspects.white_matter_level(flair, tissue, wm_probseg),
        )
        areas = suspects.find_suspects(flair, affine, anatomy)
        return {
            "suspects": [asdict(area) for area in areas],
            "rule": self.inputs.rule,
            "ventricles": found.source,
            "csf": found.csf,
            "csf_threshold": found.csf_threshold,
            "fov_coverage": covered_fraction(template, points, lattice, groups, affine),
            "notes": found.notes,
        }


def mask_from_file(
    path: Path, shape: tuple[int, ...], affine: NDArray
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """Read a brain mask that someone else made, (X, Y, Z) bool on the conformed grid.

    Raises
    ------
    InputImageError
        If it cannot be read or does not lie on the FLAIR's grid.
    """
    from bagau_bids.preprocessing.conform import read_volume

    stored = read_volume(path)  # a mask has no intensities to check
    found, grid = reorient(stored.values, stored.affine)
    if not same_grid(found.shape, grid, shape, affine):
        raise InputImageError(
            f"{path}: the brain mask lies on another grid ({found.shape} in RAS order) than "
            f"the FLAIR ({shape}); expected a mask drawn on this FLAIR: resample it, or leave "
            "out --derivatives"
        )
    record = {
        "method": "from derivatives",
        "file": path.name,
        "stripped": False,
        "notes": (f"Brain mask taken from {path}.", *stored.notes),
        "description": "Brain mask taken from another derivative data set.",
    }
    return np.ascontiguousarray(found > 0), record

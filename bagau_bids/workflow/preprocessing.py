"""The steps before the network: one nipype interface a step, which loads, calls, saves."""

from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict, replace
from nipype.interfaces.base import File, InputMultiObject, isdefined, traits
from numpy.typing import NDArray

from bagau_bids.bids.records import (
    BiasFieldRecord,
    BrainMaskRecord,
    ConformRecord,
    KnownLesions,
    RegionsRecord,
    RegistrationRecord,
    T1wRecord,
)
from bagau_bids.config import PERIVENTRICULAR_RULES
from bagau_bids.errors import InputImageError, ProcessingError
from bagau_bids.preprocessing.recipe import PREPROCESSING_VERSION
from bagau_bids.processes import both
from bagau_bids.spaces import Image, reorient, same_grid
from bagau_bids.workflow.step import (
    Step,
    StepInputSpec,
    StepOutputSpec,
    TissueInputSpec,
    load_image,
    load_on_grid,
    load_points,
    set_torch_threads,
    without,
)

if TYPE_CHECKING:
    from bagau_bids.preprocessing import registration, transforms

# Its sums, and so the result, depend on their number; a second one saves a fifth of the time.
ELASTIX_THREADS = 1
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

    def _process(self, folder: Path) -> ConformRecord:
        from bagau_bids.bids.acquisition import read_sidecars, signs_of_another_sequence
        from bagau_bids.preprocessing.conform import conform

        scan = conform(Path(self.inputs.in_file))
        sidecars = self.inputs.sidecars if isdefined(self.inputs.sidecars) else []
        signs = signs_of_another_sequence(read_sidecars([Path(path) for path in sidecars]))
        self._results["derivatives"]["conformed_flair"] = self._save(
            "flair", folder, scan, np.float32
        )
        said = [f"The metadata say {'; '.join(signs)}: is it a FLAIR?"] if signs else []
        lesions, notes = self._known_lesions(folder, scan)
        return ConformRecord(
            notes=(*scan.notes, *said, *notes),
            sidecar_signs=signs,
            shape=scan.data.shape,
            spacing_mm=tuple(nib.affines.voxel_sizes(scan.affine)),
            stored_axes=scan.stored_axes,
            tilt_degrees=np.rad2deg(nib.affines.obliquity(scan.affine)).max(),
            known_lesions=lesions,
        )

    def _known_lesions(
        self, folder: Path, flair: Image
    ) -> tuple[KnownLesions | UnsetType, tuple[str, ...]]:
        """Bring the known lesions onto the FLAIR's grid; return their record and notes."""
        from bagau_bids.measures.lesions import voxel_volume_mm3
        from bagau_bids.preprocessing.known_lesions import known_lesions_on

        if not isdefined(self.inputs.lesion_file):
            return UNSET, ()
        path = Path(self.inputs.lesion_file)
        found = known_lesions_on(path, flair)
        mask = Image(found.mask, flair.affine)
        self._derive("known_lesion_mask", folder, mask, "known_lesions")
        volume_ml = np.count_nonzero(found.mask) * voxel_volume_mm3(flair.affine) / 1000
        taken = f"Known lesions of {volume_ml:.2f} ml are those of {path}; they are no WMH."
        record = KnownLesions(
            file=path.name, resampled=found.resampled, volume_ml=round(volume_ml, 3)
        )
        return record, (self.inputs.lesion_note or taken, *found.notes)


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

    def _process(self, folder: Path) -> BrainMaskRecord:
        from bagau_bids.preprocessing.intensities import clipped_share

        flair = load_image(self.inputs.flair)
        if isdefined(self.inputs.mask_file):
            mask, record = mask_from_file(Path(self.inputs.mask_file), flair)
        elif self.inputs.skull_strip == "skip":
            mask = flair.data != 0
            record = BrainMaskRecord(
                method="non-zero voxels",
                stripped=True,
                notes=(),
                description="Voxels of the skull-stripped FLAIR that are not zero.",
            )
        else:
            mask, record = self._outlined(flair)
        if not mask.any():
            raise ProcessingError(
                "the brain mask is empty; expected a FLAIR of a head: look at the image, or give "
                "a mask with --derivatives"
            )
        self._derive("brain_mask", folder, Image(mask, flair.affine), "brain_mask")
        voxel_ml = abs(np.linalg.det(flair.affine[:3, :3])) / 1000
        return replace(
            record,
            volume_ml=round(float(mask.sum() * voxel_ml), 1),
            clipped_share=clipped_share(flair.data, mask),
        )

    def _outlined(self, flair: Image) -> tuple[NDArray[np.bool_], BrainMaskRecord]:
        """Outline the brain by the network, or find the FLAIR to be stripped."""
        from bagau_bids.preprocessing.brain_mask import brain_mask

        set_torch_threads(self.inputs.num_threads)
        found = brain_mask(flair)
        return found.mask, BrainMaskRecord(
            method="foreground" if found.stripped else "network",
            network_sha256=self.inputs.network,
            stripped=found.stripped,
            notes=found.notes,
            description=FOREGROUND if found.stripped else OUTLINED,
        )


class BiasFieldInputSpec(RecipeInputSpec, TissueInputSpec):
    """Inputs of `BiasField`."""

    flair = File(exists=True, mandatory=True, desc="conformed FLAIR")
    brain_mask = File(exists=True, mandatory=True)


class BiasFieldOutputSpec(StepOutputSpec):
    """Outputs of `BiasField`."""

    corrected = File(exists=True, desc="FLAIR without its bias field, float32")


class BiasField(Step):
    """Correct intensity non-uniformity inside the brain.

    On one thread: N4's sums depend on their number, in the fifth digit, and the registration makes
    another white-matter map of it.
    """

    input_spec = BiasFieldInputSpec
    output_spec = BiasFieldOutputSpec
    name = "bias_field"
    memory_gb = 0.8

    def _process(self, folder: Path) -> BiasFieldRecord:
        from bagau_bids.preprocessing.bias_field import correct_bias_field

        flair, mask, known = self._load_scan(self.inputs.flair)
        corrected = correct_bias_field(flair, without(mask, known))
        self._derive("preproc_flair", folder, corrected, "corrected")
        return BiasFieldRecord(method="N4", notes=())


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
    helped = True

    def _process(self, folder: Path) -> RegistrationRecord:
        from bagau_bids.preprocessing.registration import register_template
        from bagau_bids.preprocessing.template import Template

        flair, mask, known = self._load_scan(self.inputs.corrected)
        template = Template(
            name=self.inputs.template,
            t1w=Path(self.inputs.template_t1w),
            wm_probseg=Path(self.inputs.template_wm_probseg),
            brain_mask=Path(self.inputs.template_brain_mask),
        )
        result = register_template(
            flair,
            mask,
            template,
            method=self.inputs.method,
            seed=self.inputs.seed,
            threads=ELASTIX_THREADS,
            helpers=self.inputs.num_threads,
            excluded=known,
        )
        both(
            lambda: self._save_maps(folder, result, flair),
            lambda: self._save_transforms(folder, result.transform, template.t1w),
            self.inputs.num_threads,
        )
        return RegistrationRecord(
            method=result.method,
            **asdict(result.used),
            attempts=result.attempts,
            notes=result.notes,
            head_turn=result.head_turn,
            seed=self.inputs.seed,
            threads=ELASTIX_THREADS,
        )

    def _save_maps(self, folder: Path, result: "registration.Registration", flair: Image) -> None:
        """Save the template on the FLAIR, and where it lies in the template."""
        from bagau_bids.preprocessing.transforms import lattice_field

        wm_probseg, t1w = (Image(one, flair.affine) for one in (result.wm_probseg, result.t1w))
        self._derive("wm_atlas", folder, wm_probseg, "wm_probseg")
        self._results["derivatives"]["warped_t1w"] = self._save(
            "warped_t1w", folder, t1w, np.float32
        )
        lattice = lattice_field(result.transform, flair)
        points = Image(np.moveaxis(lattice.data, 0, -1), lattice.affine)
        self._save("template_points", folder, points, np.float32)

    def _save_transforms(
        self, folder: Path, transform: "transforms.TemplateTransform", template_t1w: Path
    ) -> None:
        """Save the transform in both directions."""
        from bagau_bids.preprocessing.transforms import write_itk_forward, write_itk_inverse

        forward = folder / "template_to_flair_xfm.h5"
        write_itk_forward(transform, forward)
        inverse = folder / "flair_to_template_xfm.h5"
        write_itk_inverse(transform, nib.Nifti1Image.from_filename(template_t1w), inverse)
        self._results["template_to_flair_xfm"] = str(forward)
        self._results["derivatives"] |= {
            "template_to_flair_xfm": str(forward),
            "flair_to_template_xfm": str(inverse),
        }


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

    def _process(self, folder: Path) -> T1wRecord:
        from bagau_bids.preprocessing.t1w import t1w_on_flair

        flair, mask, _ = self._load_scan(self.inputs.flair)
        result = t1w_on_flair(
            Path(self.inputs.in_file),
            flair,
            mask,
            seed=self.inputs.seed,
            threads=ELASTIX_THREADS,
        )
        self._save("t1w", folder, result, np.float32)
        return T1wRecord(
            start=result.start,
            mutual_information=result.mutual_information,
            coverage=result.coverage,
            transform=tuple(map(tuple, result.transform.tolist())),
            notes=tuple(note for note in (self.inputs.note, *result.notes) if note),
            file=Path(self.inputs.in_file).name,
        )


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
    helped = True

    def _process(self, folder: Path) -> RegionsRecord:
        from bagau_bids.measures.regions import brain_lookup_table
        from bagau_bids.preprocessing.brain_map import map_brain

        flair, mask, known = self._load_scan(self.inputs.corrected)
        found = map_brain(
            flair,
            mask,
            load_on_grid(self.inputs.wm_probseg, flair),
            load_points(self.inputs.template_points),
            known,
            self.inputs.rule,
            self.inputs.num_threads,
        )
        ventricles, regions, told = (
            Image(one, flair.affine)
            for one in (found.ventricles.mask, found.regions, found.told_regions)
        )
        self._derive("ventricle_mask", folder, ventricles, "ventricles")
        self._save("regions", folder, regions, np.uint8)
        self._derive("brain_regions_dseg", folder, told)
        self._tabulate("brain_regions_table", folder, brain_lookup_table(self.inputs.rule))
        return RegionsRecord(
            suspects=found.suspects,
            rule=self.inputs.rule,
            ventricles=found.ventricles.source,
            csf=found.ventricles.csf,
            csf_threshold=found.ventricles.csf_threshold,
            fov_coverage=found.coverage,
            notes=found.ventricles.notes,
        )


def mask_from_file(path: Path, flair: Image) -> tuple[NDArray[np.bool_], BrainMaskRecord]:
    """Read a brain mask that someone else made, (X, Y, Z) bool on the conformed grid.

    Raises
    ------
    InputImageError
        If it cannot be read or does not lie on the FLAIR's grid.
    """
    from bagau_bids.preprocessing.conform import read_volume

    stored = read_volume(path)  # a mask has no intensities to check
    found = reorient(stored)
    if not same_grid(found, flair):
        raise InputImageError(
            f"{path}: the brain mask lies on another grid ({found.shape} in RAS order) than "
            f"the FLAIR ({flair.shape}); expected a mask drawn on this FLAIR: resample it, or "
            "leave out --derivatives"
        )
    record = BrainMaskRecord(
        method="from derivatives",
        file=path.name,
        stripped=False,
        notes=(f"Brain mask taken from {path}.", *stored.notes),
        description="Brain mask taken from another derivative data set.",
    )
    return np.ascontiguousarray(found.data > 0), record

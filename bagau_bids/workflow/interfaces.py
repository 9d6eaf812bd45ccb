"""One nipype interface a step: load, call the pure function, save.

All images between the steps lie on the conformed grid (RAS+ voxel order, float32, see
`bagau_bids.preprocessing.conform`). Every step writes a record of what it did: its notes, its
figures, how long it took. What does not change a result (threads, device, compression) is left
out of the hash by which nipype decides whether a step must run again; the version of the
program is part of it. Heavy libraries are imported when a step runs, not before.
"""

import json
import os
import pdb
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import threadpool_limits

from bagau_bids import __version__
from bagau_bids.bids.derivatives import write_json, write_table
from bagau_bids.bids.locking import together
from bagau_bids.config import PERIVENTRICULAR_RULES
from bagau_bids.disk import full_disk_message, is_full_disk, temporaries_in
from bagau_bids.errors import BagauError, InputImageError, ProcessingError
from bagau_bids.spaces import reorient, same_grid

if TYPE_CHECKING:
    from bagau_bids.measures.infarcts import Found
    from bagau_bids.measures.quality import Registered

FAILURE_FILE = "failure.json"
RECORD_FILE = "record.json"
STEPS_LOCK = ".steps.lock"  # in a scan's work folder; held by its steps while they are at work
OUTLINED = "Brain, outlined on the FLAIR by a network."
FOREGROUND = (
    "Foreground of the FLAIR, which came without its skull: the voxels that do not have the value "
    "of the background, their largest component, holes filled."
)
NO_MEMORY = ("can't allocate memory", "std::bad_alloc", "Cannot allocate memory")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


class StepInputSpec(BaseInterfaceInputSpec):
    """Inputs that every step has."""

    version = traits.Str(__version__, usedefault=True, desc="version of the program")
    compress = traits.Bool(True, usedefault=True, nohash=True, desc="gzip images between steps")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads the step may use")
    debug = traits.Bool(False, usedefault=True, nohash=True, desc="open the debugger on an error")


class StepOutputSpec(TraitedSpec):
    """Outputs that every step has."""

    record = File(desc="JSON: notes, figures and duration of the step")


class Step(SimpleInterface):
    """Base of the steps: times them, writes their record, and says why one failed."""

    input_spec = StepInputSpec
    output_spec = StepOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        folder = Path(runtime.cwd)
        started = time.monotonic()
        with telling_why(folder, debug=self.inputs.debug):
            with (
                together(_steps_lock(folder)),
                temporaries_in(folder),
                limited_threads(self.inputs.num_threads),
            ):
                record = self._process(folder)
            duration_s = round(time.monotonic() - started, 1)
            write_json(folder / RECORD_FILE, {**record, "duration_s": duration_s})
        self._results["record"] = str(folder / RECORD_FILE)
        return runtime

    def _process(self, folder: Path) -> dict[str, Any]:
        """Do the work inside `folder`, set the outputs, and return the step's record."""
        raise NotImplementedError

    def _save(
        self, output: str, folder: Path, data: NDArray, affine: NDArray, dtype: DTypeLike
    ) -> None:
        """Save an image of the conformed grid in `folder`, as the output of that name."""
        path = folder / f"{output}.nii{'.gz' if self.inputs.compress else ''}"
        save_image(path, data, affine, dtype)
        self._results[output] = str(path)


class TissueInputSpec(StepInputSpec):
    """Inputs of a step to which known lesions are no tissue."""

    known_lesions = File(exists=True, desc="infarct, tumour, resection ...; conformed grid")


def known_lesions_of(
    inputs: TissueInputSpec, shape: tuple[int, ...], affine: NDArray
) -> NDArray[np.bool_] | None:
    """Load the known lesions of a step, (X, Y, Z) bool; None where the user named none."""
    if not isdefined(inputs.known_lesions):
        return None
    return load_on_grid(inputs.known_lesions, shape, affine) > 0


def without(mask: NDArray[np.bool_], known: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return a mask, (X, Y, Z) bool, less the known lesions."""
    return mask if known is None else mask & ~known


class ConformInputSpec(StepInputSpec):
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

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.bids.acquisition import read_sidecars, signs_of_another_sequence
        from bagau_bids.preprocessing.conform import conform

        scan = conform(Path(self.inputs.in_file))
        sidecars = self.inputs.sidecars if isdefined(self.inputs.sidecars) else []
        signs = signs_of_another_sequence(read_sidecars([Path(path) for path in sidecars]))
        self._save("flair", folder, scan.data, scan.affine, np.float32)
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
        self._save("known_lesions", folder, found.mask, affine, np.uint8)
        volume_ml = np.count_nonzero(found.mask) * voxel_volume_mm3(affine) / 1000
        taken = f"Known lesions of {volume_ml:.2f} ml are those of {path}; they are no WMH."
        chosen = self.inputs.lesion_note or taken
        return {
            "file": path.name,
            "resampled": found.resampled,
            "volume_ml": round(volume_ml, 3),
        }, (chosen, *found.notes)


class BrainMaskInputSpec(StepInputSpec):
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

        self._save("brain_mask", folder, mask, affine, np.uint8)
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        return {
            **record,
            "volume_ml": round(float(mask.sum() * voxel_ml), 1),
            "clipped_share": clipped_share(flair, mask),
        }


class BiasFieldInputSpec(TissueInputSpec):
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

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.preprocessing.bias_field import correct_bias_field

        flair, affine = load_image(self.inputs.flair)
        mask = load_on_grid(self.inputs.brain_mask, flair.shape, affine) > 0
        known = known_lesions_of(self.inputs, flair.shape, affine)
        corrected = correct_bias_field(flair, affine, without(mask, known))
        self._save("corrected", folder, corrected, affine, np.float32)
        return {"method": "N4", "notes": ()}


class RegistrationInputSpec(TissueInputSpec):
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
    flair_to_template_xfm = File(exists=True, desc="resamples the FLAIR onto the template")
    template_points = File(
        exists=True, desc="place in the template (mm, RAS+) of a lattice over the FLAIR, 4-D"
    )


class Registration(Step):
    """Register the template to the FLAIR and carry its white matter map over."""

    input_spec = RegistrationInputSpec
    output_spec = RegistrationOutputSpec

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
        self._save("wm_probseg", folder, result.wm_probseg, affine, np.float32)
        self._save("warped_t1w", folder, result.t1w, affine, np.float32)
        forward = folder / "template_to_flair_xfm.h5"
        write_itk_forward(result.transform, forward)
        inverse = folder / "flair_to_template_xfm.h5"
        grid = nib.Nifti1Image.from_filename(template.t1w)
        write_itk_inverse(result.transform, grid.shape, grid.affine, inverse)
        points, lattice = lattice_field(result.transform, flair.shape, affine)
        self._save("template_points", folder, np.moveaxis(points, 0, -1), lattice, np.float32)
        self._results["template_to_flair_xfm"] = str(forward)
        self._results["flair_to_template_xfm"] = str(inverse)
        return {**result.quality, "seed": self.inputs.seed, "threads": self.inputs.num_threads}


class T1wInputSpec(StepInputSpec):
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


class SegmentationInputSpec(TissueInputSpec):
    """Inputs of `Segmentation`."""

    corrected = File(exists=True, mandatory=True, desc="bias-corrected FLAIR, conformed grid")
    brain_mask = File(exists=True, mandatory=True)
    wm_probseg = File(exists=True, mandatory=True, desc="template's white matter on the FLAIR")
    t1w = File(exists=True, desc="T1w on the conformed grid, for networks that ask for it")
    weights = InputMultiObject(
        File(exists=True), mandatory=True, desc="safetensors files; their mean is taken"
    )
    cards = InputMultiObject(
        File(exists=True), desc="JSON cards of the weights; a changed one makes the step run again"
    )
    tta = traits.Bool(False, usedefault=True, desc="average with the mirrored FLAIR's result")
    device = traits.Str("auto", usedefault=True, nohash=True, desc="auto, cpu, cuda or cuda:N")
    batch_size = traits.Int(8, usedefault=True, nohash=True, desc="slices at once")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="takes nipype's GPU slot")


class SegmentationOutputSpec(StepOutputSpec):
    """Outputs of `Segmentation`."""

    probability = File(exists=True, desc="WMH probability, float32, 0 outside the brain")
    infarct_probability = File(desc="likewise of infarct; only where a network tells it")


class Segmentation(Step):
    """Run the network over a FLAIR and its white matter map."""

    input_spec = SegmentationInputSpec
    output_spec = SegmentationOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.network.inference import segment, segment_input
        from bagau_bids.network.slices import add_t1, network_input, require_white_matter
        from bagau_bids.network.weights import INFARCT, load_weights, operating_point, outputs_of

        set_torch_threads(self.inputs.num_threads)
        flair, affine = load_image(self.inputs.corrected)
        mask = load_on_grid(self.inputs.brain_mask, flair.shape, affine) > 0
        wm_probseg = load_on_grid(self.inputs.wm_probseg, flair.shape, affine)
        paths = [Path(path) for path in self.inputs.weights]
        models, cards = zip(*(load_weights(path) for path in paths), strict=True)
        running = {
            "device": self.inputs.device,
            "batch_size": self.inputs.batch_size,
            "tta": self.inputs.tta,
        }
        known = known_lesions_of(self.inputs, flair.shape, affine)
        if isdefined(self.inputs.t1w) or known is not None:
            inputs = network_input(flair, affine, mask, wm_probseg, known)
            require_white_matter(wm_probseg, mask)
            judged = without(mask, known)
            if isdefined(self.inputs.t1w):
                t1 = load_on_grid(self.inputs.t1w, flair.shape, affine)
                inputs = add_t1(inputs, t1, affine, judged)
            result = segment_input(models, inputs, judged, **running)
        else:
            result = segment(models, flair, affine, mask, wm_probseg, **running)
        self._save("probability", folder, result.probability, affine, np.float32)
        if result.infarct_probability is not None:
            infarct = result.infarct_probability
            self._save("infarct_probability", folder, infarct, affine, np.float32)
        return {
            "notes": result.notes,
            "device": result.device,
            "precision": result.precision,
            "batch_size": result.batch_size,
            "tta": self.inputs.tta,
            "models": [
                {
                    "Name": path.stem,
                    "Architecture": card["architecture"],
                    "Version": card.get("version"),
                    "SHA256": card["sha256"],
                    "Outputs": outputs_of(model),
                    "ThresholdBeforeCalibration": operating_point(model),
                    **(
                        {"InfarctThresholdBeforeCalibration": operating_point(model, INFARCT)}
                        if INFARCT in outputs_of(model)
                        else {}
                    ),
                }
                for path, card, model in zip(paths, cards, models, strict=True)
            ],
        }


NO_VENTRICLES = (
    "The scan has no lateral ventricles: regions that follow from the distance to them, and the "
    "Fazekas grades, are n/a."
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
    brain_regions = File(
        exists=True, desc="the same where it can be told, ventricles apart, uint8, same grid"
    )
    brain_regions_table = File(exists=True, desc="TSV, what the values of brain_regions mean")


class Regions(Step):
    """Outline the ventricles, and tell the regions of the brain apart."""

    input_spec = RegionsInputSpec
    output_spec = RegionsOutputSpec

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
        self._save("ventricles", folder, found.mask, affine, np.uint8)
        self._save("regions", folder, numbers, affine, np.uint8)
        brain_regions = regions.brain_map(numbers, found.mask, distance)
        self._save("brain_regions", folder, brain_regions, affine, np.uint8)
        table = folder / "brain_regions_table.tsv"
        write_table(table, regions.brain_lookup_table(self.inputs.rule))
        self._results["brain_regions_table"] = str(table)
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


KNOWN_OUTSIDE = (
    "The mask of known lesions lies outside the brain mask: it takes nothing from the WMH; look "
    "whether it belongs to this FLAIR."
)
NOTED_ML = 0.1
UNASKED = (
    "{:.2f} ml are an infarct to the network and not counted as WMH; --infarct puts them out as a "
    "mask, a probability and a volume."
)


class MeasureInputSpec(TissueInputSpec):
    """Inputs of `Measure`."""

    probability = File(exists=True, mandatory=True, desc="of WMH")
    infarct_probability = File(exists=True, desc="of infarct, where a network tells it")
    infarct = traits.Bool(False, usedefault=True, desc="infarcts are wanted as a result")
    corrected = File(exists=True, mandatory=True)
    brain_mask = File(exists=True, mandatory=True)
    wm_probseg = File(exists=True, mandatory=True)
    ventricles = File(exists=True, mandatory=True)
    regions = File(exists=True, mandatory=True)
    template_points = File(exists=True, mandatory=True, desc="as `Registration` puts it out")
    rule = traits.Enum(*PERIVENTRICULAR_RULES, mandatory=True, desc="that of the regions")
    warped_t1w = File(exists=True, mandatory=True, desc="template's T1w on the FLAIR")
    conform_record = File(exists=True, mandatory=True)
    brain_mask_record = File(exists=True, mandatory=True)
    registration_record = File(exists=True, mandatory=True)
    regions_record = File(exists=True, mandatory=True)
    threshold = traits.Float(mandatory=True, desc="WMH from this probability on")
    min_lesion_size_mm3 = traits.Float(mandatory=True, desc="smaller lesions are dropped")


class MeasureOutputSpec(StepOutputSpec):
    """Outputs of `Measure`."""

    wmh_mask = File(exists=True, desc="uint8, conformed grid")
    infarct_mask = File(desc="uint8, conformed grid; only where wanted")
    lesions = File(exists=True, desc="lesions numbered from 1, int32, conformed grid")
    wmh_regions = File(exists=True, desc="region of each voxel of the mask, uint8, same grid")
    volumes_table = File(exists=True, desc="TSV")
    lesions_table = File(exists=True, desc="TSV")
    quality_table = File(exists=True, desc="TSV")
    regions_table = File(exists=True, desc="TSV, what the values of wmh_regions mean")
    fazekas_table = File(exists=True, desc="TSV")


class Measure(Step):
    """Turn the probability into a mask, its lesions, and tables about both."""

    input_spec = MeasureInputSpec
    output_spec = MeasureOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.measures import fazekas, flags, lesions, quality, suspects
        from bagau_bids.measures.regions import (
            distance_mm,
            infratentorial,
            lookup_table,
            ventricles_seen,
        )

        probability, affine = load_image(self.inputs.probability)
        shape = probability.shape
        flair = load_on_grid(self.inputs.corrected, shape, affine)
        brain = load_on_grid(self.inputs.brain_mask, shape, affine) > 0
        wm_probseg = load_on_grid(self.inputs.wm_probseg, shape, affine)
        regions = load_on_grid(self.inputs.regions, shape, affine).astype(np.uint8)
        ventricles = load_on_grid(self.inputs.ventricles, shape, affine) > 0
        known = known_lesions_of(self.inputs, shape, affine)
        found = self._found(probability, affine)
        mask = found.wmh
        # Neither infarcts nor known lesions are normal white matter, or WMH that one doubts.
        healthy_wm = np.where(without(~found.infarct, known), wm_probseg, 0)
        labels = lesions.label_lesions(mask)
        self._save("wmh_mask", folder, mask, affine, np.uint8)
        self._save("lesions", folder, labels, affine, np.int32)
        distance = distance_mm(ventricles, affine)
        seen = ventricles_seen(distance)
        told = infratentorial(regions) | seen
        self._save("wmh_regions", folder, np.where(mask & told, regions, 0), affine, np.uint8)
        points, lattice = load_image(self.inputs.template_points)
        surroundings = lesions.Surroundings(
            regions=regions,
            ventricle_distance_mm=distance,
            template_points=np.moveaxis(points, -1, 0),
            points_affine=lattice,
            white_matter=quality.white_matter_level(
                flair, quality.normal_white_matter(brain, healthy_wm, mask)
            ),
        )
        figures = quality.scan_quality(
            flair,
            affine,
            brain,
            healthy_wm,
            mask,
            np.where(found.infarct, 0, probability),
            self._registered(),
        )
        areas = read_record(self.inputs.regions_record)["suspects"]
        figures |= suspects.suspect_figures(areas)
        figures |= self._plausibility(flair, affine, brain, wm_probseg, figures)
        tables = {
            "volumes_table": lesions.volume_table(
                mask,
                affine,
                brain,
                regions,
                self.inputs.rule,
                ventricles=seen,
                others={"infarct": found.reported, "known_lesion": known},
            ),
            "lesions_table": lesions.lesion_table(
                labels, affine, probability, flair, brain, surroundings
            ),
            "regions_table": lookup_table(self.inputs.rule),
            "fazekas_table": fazekas.fazekas_table(mask, distance, regions, affine),
            "quality_table": flags.quality_table(figures),
        }
        for name, table in tables.items():
            path = folder / f"{name}.tsv"
            write_table(path, table)
            self._results[name] = str(path)
        places = suspects.places_in_words(areas)
        raised = [asdict(flag) for flag in flags.raised_flags(figures, places)]
        if found.reported is not None:
            self._save("infarct_mask", folder, found.reported, affine, np.uint8)
        infarct_ml = found.infarct_ml(affine)
        notes = [] if seen else [NO_VENTRICLES]
        if known is not None and known.any() and not (known & brain).any():
            notes.append(KNOWN_OUTSIDE)
        if infarct_ml is not None and infarct_ml >= NOTED_ML and not self.inputs.infarct:
            notes.append(UNASKED.format(infarct_ml))
        return {
            "notes": notes,
            "quality": figures,
            "flags": raised,
            "infarct_ml": infarct_ml,
        }

    def _found(self, probability: NDArray, affine: NDArray) -> "Found":
        """Tell WMH and infarcts apart; small pieces of either go."""
        from bagau_bids.measures.infarcts import find

        infarct = None
        if isdefined(self.inputs.infarct_probability):
            infarct = load_on_grid(self.inputs.infarct_probability, probability.shape, affine)
        return find(
            probability,
            infarct,
            affine,
            threshold=self.inputs.threshold,
            min_size_mm3=self.inputs.min_lesion_size_mm3,
            wanted=self.inputs.infarct,
        )

    def _plausibility(
        self,
        flair: NDArray,
        affine: NDArray,
        brain: NDArray,
        wm_probseg: NDArray,
        figures: Mapping[str, float | None],
    ) -> dict[str, float | None]:
        """Figures of whether the scan is what its name and header say."""
        from bagau_bids.measures import plausibility

        evidence = plausibility.Evidence(
            csf_to_wm=figures["csf_to_wm"],
            entropy=figures["wmh_entropy"],
            sidecar_signs=read_record(self.inputs.conform_record).get("sidecar_signs", ()),
        )
        t1w = load_on_grid(self.inputs.warped_t1w, flair.shape, affine)
        return {
            **plausibility.contrast_figures(flair, brain, wm_probseg, t1w, evidence),
            "clipped_share": read_record(self.inputs.brain_mask_record).get("clipped_share"),
            "head_turn": read_record(self.inputs.registration_record).get("head_turn"),
            "slice_tilt_degrees": plausibility.slice_tilt_degrees(affine),
        }

    def _registered(self) -> "Registered":
        """Gather what earlier steps recorded of the registration."""
        from bagau_bids.measures.quality import Registered

        registration = read_record(self.inputs.registration_record)
        regions = read_record(self.inputs.regions_record)
        return Registered(
            overlap=registration["overlap"],
            mutual_information=registration["mutual_information"],
            coverage=regions["fov_coverage"],
            csf=regions["csf"],
        )


class TemplateCopiesInputSpec(StepInputSpec):
    """Inputs of `TemplateCopies`."""

    wmh_mask = File(exists=True, mandatory=True)
    probability = File(exists=True, mandatory=True)
    corrected = File(exists=True, mandatory=True)
    template_to_flair_xfm = File(exists=True, mandatory=True)
    template_t1w = File(exists=True, mandatory=True, desc="its grid is the target")


class TemplateCopiesOutputSpec(StepOutputSpec):
    """Outputs of `TemplateCopies`."""

    template_wmh_mask = File(exists=True, desc="nearest neighbour, uint8")
    template_wmh_probseg = File(exists=True, desc="trilinear, float32")
    template_flair = File(exists=True, desc="trilinear, float32")


class TemplateCopies(Step):
    """Resample results onto the grid of the template."""

    input_spec = TemplateCopiesInputSpec
    output_spec = TemplateCopiesOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        from bagau_bids.preprocessing.transforms import inverse_field, read_itk_forward, sample

        grid = nib.Nifti1Image.from_filename(self.inputs.template_t1w)
        transform = read_itk_forward(Path(self.inputs.template_to_flair_xfm))
        points = inverse_field(transform, grid.shape, grid.affine)
        for output, path, order, dtype in (
            ("template_wmh_mask", self.inputs.wmh_mask, 0, np.uint8),
            ("template_wmh_probseg", self.inputs.probability, 1, np.float32),
            ("template_flair", self.inputs.corrected, 1, np.float32),
        ):
            data, affine = load_image(path)
            copy = sample(data, affine, points, order)
            target = folder / f"{output}.nii.gz"
            save_image(target, copy, grid.affine, dtype, standard_space=True)
            self._results[output] = str(target)
        return {"notes": ()}


def _steps_lock(folder: Path) -> Path:
    """Find the lock of the scan's work folder, which a step's folder lies in, at any depth."""
    return next(
        (path for above in folder.parents if (path := above / STEPS_LOCK).exists()),
        folder / STEPS_LOCK,
    )


@contextmanager
def telling_why(folder: Path, *others: Path, debug: bool = False) -> Iterator[None]:
    """Leave a file in a step's folder that says why the block failed, for who tells the user.

    Parameters
    ----------
    folder
        The step's own.
    others
        Other folders that it writes to.
    debug
        Open the debugger first.
    """
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # on a full disk: what started the step looks at that, too
            write_json(folder / FAILURE_FILE, describe_failure(error, (folder, *others)))
        if debug:
            pdb.post_mortem(error.__traceback__)
        raise


def describe_failure(error: BaseException, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """Say what went wrong: ``message``, and whether it explains itself to a user.

    Parameters
    ----------
    error
        What was raised.
    folders
        Those that were written to, one of which may be on a full disk.
    """
    message = str(error).strip() or "no message"
    if isinstance(error, BagauError) and not is_full_disk(error):
        return {"explained": True, "message": message}
    if is_full_disk(error):
        return {"explained": True, "message": full_disk_message(folders)}
    if isinstance(error, MemoryError) or any(words in message for words in NO_MEMORY):
        short = " ".join(message.split())[:200]
        advice = "give the run more memory, or fewer steps at once with --nprocs or --mem-gb"
        return {"explained": True, "message": f"ran out of memory ({short}); {advice}"}
    first_line = message.splitlines()[0]  # the crash file holds all of it
    return {"explained": False, "message": f"{type(error).__name__}: {first_line}"}


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Tell libraries that read the environment how many threads to use; BLAS gets one.

    The matrix products here are small, and the threads of a BLAS that wait for a busy core
    make them fifty times slower.
    """
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def set_torch_threads(count: int) -> None:
    """Tell PyTorch how many threads to use; it reads the environment only once."""
    import torch

    torch.set_num_threads(count)


def save_image(
    path: Path, data: NDArray, affine: NDArray, dtype: DTypeLike, *, standard_space: bool = False
) -> None:
    """Save an array (X, Y, Z) with its affine (4, 4), voxel to world in mm, as NIfTI-1.

    sform and qform both hold the affine; their codes are 4 in a standard space, else 1.
    """
    image = nib.Nifti1Image(np.asarray(data).astype(dtype), affine)
    code = 4 if standard_space else 1
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


def load_image(path: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Load a step's image: data (X, Y, Z) float32 and affine (4, 4).

    Raises
    ------
    ProcessingError
        If the file is damaged.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        return np.asarray(image.dataobj, dtype=np.float32), image.affine
    except (EOFError, OSError, ValueError, zlib.error, ImageFileError) as error:
        raise ProcessingError(damaged(path, error)) from error


def load_on_grid(path: str, shape: tuple[int, ...], affine: NDArray) -> NDArray[np.float32]:
    """Load a step's image that must lie on the given grid.

    Raises
    ------
    ProcessingError
        If it does not.
    """
    data, found = load_image(path)
    if not same_grid(data.shape, found, shape, affine):
        raise ProcessingError(
            f"{path}: lies on another grid than the scan it belongs to, {data.shape} instead of "
            f"{shape}; remove the work folder and run again"
        )
    return data


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


def read_record(path: str | Path) -> dict[str, Any]:
    """Read the record of a step.

    Raises
    ------
    ProcessingError
        If the file is damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProcessingError(damaged(path, error)) from error


def damaged(path: str | Path, error: object) -> str:
    """Say that a file in the work folder is damaged, and what to do."""
    return (
        f"{path}: a file of an earlier step is damaged ({error}); run the same command with "
        "--clean-workdir, which computes all steps anew"
    )

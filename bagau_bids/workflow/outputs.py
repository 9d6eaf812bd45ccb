"""The last steps of a scan: copies in template space, derivatives prepared and put out.

Preparing brings every image back to the grid and header of the source and writes each file
under its final name with its sidecar. Putting out copies what differs, each file in one step,
and runs every time, so that a result that someone deleted comes back without any computing.
"""

import hashlib
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    Directory,
    File,
    InputMultiObject,
    isdefined,
    traits,
)
from numpy.typing import NDArray

from bagau_bids import __version__
from bagau_bids.bids.derivatives import derivative_path, sidecar_path
from bagau_bids.bids.sidecars import Provenance, image_sidecars, template_sidecars
from bagau_bids.bids.tables import column_descriptions
from bagau_bids.errors import ProcessingError
from bagau_bids.files import copy_file, remove_stale, write_json
from bagau_bids.workflow.step import (
    Step,
    StepInputSpec,
    StepOutputSpec,
    damaged,
    load_image,
    read_record,
    save_image,
)

# Images on the conformed grid -> derivative and type on disk.
NATIVE_IMAGES: dict[str, tuple[str, type]] = {
    "wmh_mask": ("wmh_mask", np.uint8),
    "probability": ("wmh_probseg", np.float32),
    "lesions": ("lesions_dseg", np.int32),
    "wmh_regions": ("regions_dseg", np.uint8),
    "ventricles": ("ventricle_mask", np.uint8),
    "brain_regions": ("brain_regions_dseg", np.uint8),
    "brain_mask": ("brain_mask", np.uint8),
    "corrected": ("preproc_flair", np.float32),
    "wm_probseg": ("wm_atlas", np.float32),
}
# The same, of what not every scan has.
OPTIONAL_IMAGES: dict[str, tuple[str, type]] = {
    "infarct_mask": ("infarct_mask", np.uint8),
    "infarct_probability": ("infarct_probseg", np.float32),
    "known_lesions": ("known_lesion_mask", np.uint8),
}
# Images that are there to be looked at, in 256 steps of brightness.
PREVIEWS = {"flair": "conformed_flair", "warped_t1w": "warped_t1w"}
BRIGHTEST_PERCENTILE = 99.9
FINAL_FILES = (
    "lesions_table",
    "regions_table",
    "brain_regions_table",
    "volumes_table",
    "fazekas_table",
    "quality_table",
    "template_to_flair_xfm",
    "flair_to_template_xfm",
)
TEMPLATE_FILES = ("template_wmh_mask", "template_wmh_probseg", "template_flair")
LIBRARIES = ("antspyx", "itk-elastix", "nibabel", "nipype", "numpy", "pybids", "scipy", "torch")


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
    name = "template_copies"
    memory_gb = 1.8

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


class PrepareInputSpec(StepInputSpec):
    """Inputs of `Prepare`."""

    source_file = File(exists=True, mandatory=True, desc="FLAIR as it is in the data set")
    source = traits.Str(mandatory=True, desc="its path relative to the data set")
    entities = traits.Dict(mandatory=True, desc="entities of its name")
    template = traits.Str(mandatory=True, desc="name of the template")
    template_uris = traits.Dict(mandatory=True, desc="BIDS URIs of t1w, wm_probseg, brain_mask")
    brain_mask_uri = traits.Str(usedefault=True, desc="where a mask from elsewhere came from")
    known_lesions_uri = traits.Str(usedefault=True, desc="where the known lesions came from")
    options = traits.Dict(mandatory=True, desc="options of the run that make the result")

    flair = File(exists=True, mandatory=True)
    wmh_mask = File(exists=True, mandatory=True)
    probability = File(exists=True, mandatory=True)
    lesions = File(exists=True, mandatory=True)
    wmh_regions = File(exists=True, mandatory=True)
    ventricles = File(exists=True, mandatory=True)
    brain_regions = File(exists=True, mandatory=True)
    brain_mask = File(exists=True, mandatory=True)
    corrected = File(exists=True, mandatory=True)
    wm_probseg = File(exists=True, mandatory=True)
    warped_t1w = File(exists=True, mandatory=True)
    lesions_table = File(exists=True, mandatory=True)
    volumes_table = File(exists=True, mandatory=True)
    regions_table = File(exists=True, mandatory=True)
    brain_regions_table = File(exists=True, mandatory=True)
    fazekas_table = File(exists=True, mandatory=True)
    quality_table = File(exists=True, mandatory=True)
    template_to_flair_xfm = File(exists=True, mandatory=True)
    flair_to_template_xfm = File(exists=True, mandatory=True)
    infarct_mask = File(exists=True)
    infarct_probability = File(exists=True)
    known_lesions = File(exists=True)
    template_wmh_mask = File(exists=True)
    template_wmh_probseg = File(exists=True)
    template_flair = File(exists=True)

    conform_record = File(exists=True, mandatory=True)
    brain_mask_record = File(exists=True, mandatory=True)
    bias_field_record = File(exists=True, mandatory=True)
    registration_record = File(exists=True, mandatory=True)
    regions_record = File(exists=True, mandatory=True)
    segmentation_record = File(exists=True, mandatory=True)
    measure_record = File(exists=True, mandatory=True)
    t1w_record = File(exists=True)


class PrepareOutputSpec(StepOutputSpec):
    """Outputs of `Prepare`."""

    tree = Directory(exists=True, desc="the scan's derivatives as they go into the output folder")
    files = traits.List(traits.Str(), desc="their paths relative to the tree")
    stale = traits.List(traits.Str(), desc="likewise, of what another run may have left there")
    digests = traits.List(traits.Str(), desc="SHA-256 of each")


class Prepare(Step):
    """Write the derivatives of one scan under their final names into the work folder."""

    input_spec = PrepareInputSpec
    output_spec = PrepareOutputSpec
    name = "prepare"
    memory_gb = 1.2

    def _process(self, folder: Path) -> dict[str, Any]:
        tree = folder / "derivatives"
        steps = self._steps()
        scan = Provenance(
            entities=self.inputs.entities,
            source=self.inputs.source,
            template=self.inputs.template,
            template_uris=self.inputs.template_uris,
            brain_mask_uri=self.inputs.brain_mask_uri,
            known_lesions_uri=self.inputs.known_lesions_uri,
            infarct=isdefined(self.inputs.infarct_mask),
            steps=steps,
            threshold=self.inputs.options["threshold"],
            min_lesion_size_mm3=self.inputs.options["min_lesion_size_mm3"],
        )
        self._write_images(tree)
        written = self._copy_files(tree)
        self._write_sidecars(tree, scan, with_template="template_flair" in written)
        made = sorted(path.relative_to(tree) for path in tree.rglob("*") if path.is_file())
        record = derivative_path(tree, self.inputs.entities, "record")
        write_json(record, self._record(steps, scan, made))
        optional = [self._path(tree, name) for name, _ in OPTIONAL_IMAGES.values()]
        absent = [path for path in optional if not path.is_file()]
        self._results["stale"] = [
            str(one.relative_to(tree)) for path in absent for one in (path, sidecar_path(path))
        ]
        self._results["tree"] = str(tree)
        files = [str(path) for path in (*made, record.relative_to(tree))]
        self._results["files"] = files
        self._results["digests"] = [file_digest(tree / name) for name in files]
        return {"notes": ()}

    def _path(self, tree: Path, name: str) -> Path:
        return derivative_path(tree, self.inputs.entities, name, template=self.inputs.template)

    def _steps(self) -> dict[str, dict[str, Any]]:
        inputs = self.inputs
        records = {
            "conform": inputs.conform_record,
            "brain_mask": inputs.brain_mask_record,
            "bias_field": inputs.bias_field_record,
            "registration": inputs.registration_record,
            "regions": inputs.regions_record,
            "segmentation": inputs.segmentation_record,
            "measure": inputs.measure_record,
        }
        if isdefined(inputs.t1w_record):
            records["t1w"] = inputs.t1w_record
        return {name: read_record(path, dict[str, Any]) for name, path in records.items()}

    def _write_images(self, tree: Path) -> None:
        from bagau_bids.preprocessing.conform import to_source

        source = nib.load(self.inputs.source_file)
        previews = {field: (name, np.uint8) for field, name in PREVIEWS.items()}
        optional = {
            field: image
            for field, image in OPTIONAL_IMAGES.items()
            if isdefined(getattr(self.inputs, field))
        }
        for field, (name, dtype) in {**NATIVE_IMAGES, **previews, **optional}.items():
            data, _ = load_image(getattr(self.inputs, field))
            path = self._path(tree, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            stored = eight_bits(data) if field in PREVIEWS else data.astype(dtype)
            to_source(stored, source, dtype).to_filename(path)

    def _copy_files(self, tree: Path) -> tuple[str, ...]:
        """Copy what is final already; return which there were."""
        there = tuple(
            name
            for name in (*FINAL_FILES, *TEMPLATE_FILES)
            if isdefined(getattr(self.inputs, name))
        )
        for name in there:
            copy_file(Path(getattr(self.inputs, name)), self._path(tree, name))
        return there

    def _write_sidecars(self, tree: Path, scan: Provenance, with_template: bool) -> None:
        sidecars = image_sidecars(scan)
        if with_template:
            sidecars |= template_sidecars(scan)
        sidecars["lesions_dseg"] |= column_descriptions("lesions")
        sidecars["regions_dseg"] |= column_descriptions("regions")
        sidecars["brain_regions_dseg"] |= column_descriptions("brain_regions")
        sidecars["volumes_table"] = column_descriptions("volumes")
        sidecars["fazekas_table"] = column_descriptions("fazekas")
        sidecars["quality_table"] = {
            **column_descriptions("quality_table"),
            "Figures": column_descriptions("quality"),
        }
        for name, content in sidecars.items():
            write_json(sidecar_path(self._path(tree, name)), content)

    def _record(
        self, steps: dict[str, dict[str, Any]], scan: Provenance, made: list[Path]
    ) -> dict[str, Any]:
        """Describe how the scan was processed, for the reports and the group level."""
        return {
            "status": "complete",
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": scan.source_uri,
            "entities": self.inputs.entities,
            "options": self.inputs.options,
            "versions": library_versions(),
            "steps": steps,
            "outputs": made,
        }


class PutOutInputSpec(StepInputSpec):
    """Inputs of `PutOut`."""

    tree = Directory(exists=True, mandatory=True)
    files = InputMultiObject(traits.Str(), mandatory=True, desc="paths relative to the tree")
    stale = traits.List(traits.Str(), desc="likewise, of what this run does not make")
    digests = InputMultiObject(traits.Str(), mandatory=True, desc="SHA-256 of each")
    output_dir = Directory(mandatory=True, desc="root of the derivative data set")


class PutOutOutputSpec(StepOutputSpec):
    """Outputs of `PutOut`."""

    written = traits.List(traits.Str(), desc="paths of files that were not there already")


class PutOut(Step):
    """Copy a scan's derivatives into the output folder, each in one step, where they differ.

    Nothing is copied where one of them is not as it was when it was made.
    """

    input_spec = PutOutInputSpec
    output_spec = PutOutOutputSpec
    name = "put_out"
    memory_gb = 0.3
    ends_scan = True
    _always_run = True

    def _folders(self, folder: Path) -> tuple[Path, ...]:
        return (folder, Path(self.inputs.output_dir))

    def _process(self, folder: Path) -> dict[str, Any]:
        tree, output_dir = Path(self.inputs.tree), Path(self.inputs.output_dir)
        for name, digest in zip(self.inputs.files, self.inputs.digests, strict=True):
            if not (tree / name).is_file() or file_digest(tree / name) != digest:
                raise ProcessingError(damaged(tree / name, "not as it was written"))
        self._results["written"] = [
            name for name in self.inputs.files if copy_file(tree / name, output_dir / name)
        ]
        if isdefined(self.inputs.stale):
            left = [output_dir / name for name in self.inputs.stale]
            remove_stale(left, "this run was not asked for it, or has no such mask")
        return {"notes": ()}


def eight_bits(data: NDArray) -> NDArray[np.uint8]:
    """Brightness from 0 to the 99.9th percentile in steps 0 to 255, for an image to look at.

    Where values are negative the lowest is shown as 0.
    """
    low, high = min(0.0, float(data.min())), float(np.percentile(data, BRIGHTEST_PERCENTILE))
    scaled = (data - low) / ((high - low) or 1.0)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the program, of Python, and of the libraries that results depend on."""
    versions = {"bagau-bids": __version__, "python": platform.python_version()}
    return versions | {name: version(name) for name in LIBRARIES}

"""The last steps of a scan: copies in template space, derivatives prepared and put out.

Preparing brings every image back to the grid and header of the source and writes each file
under its final name with its sidecar. Putting out copies what differs, each file in one step,
and runs every time, so that a result that someone deleted comes back without any computing.
"""

import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    Directory,
    DynamicTraitedSpec,
    File,
    InputMultiObject,
    isdefined,
    traits,
)
from nipype.interfaces.io import add_traits
from numpy.typing import NDArray

from bagau_bids import __version__
from bagau_bids.bids.derivatives import catalogue, derivative_path, sidecar_path
from bagau_bids.bids.edited import keep, was_edited
from bagau_bids.bids.records import Options, Record, Steps
from bagau_bids.bids.sidecars import Provenance, image_sidecars, template_sidecars
from bagau_bids.bids.tables import column_descriptions
from bagau_bids.errors import ProcessingError
from bagau_bids.files import copy_file, file_digest, remove_stale, same_content, write_json
from bagau_bids.processes import side_by_side
from bagau_bids.spaces import Image
from bagau_bids.workflow.step import (
    Step,
    StepInputSpec,
    StepOutputSpec,
    damaged,
    load_image,
    read_record,
    save_image,
)

BRIGHTEST_PERCENTILE = 99.9
WRITERS = 3  # images that are in memory at a time, at most
LIBRARIES = ("antspyx", "itk-elastix", "nibabel", "nipype", "numpy", "pybids", "scipy", "torch")


class TemplateCopiesInputSpec(StepInputSpec):
    """Inputs of `TemplateCopies`."""

    wmh_mask = File(exists=True, mandatory=True)
    probability = File(exists=True, mandatory=True)
    corrected = File(exists=True, mandatory=True)
    template_to_flair_xfm = File(exists=True, mandatory=True)
    template_t1w = File(exists=True, mandatory=True, desc="its grid is the target")


class TemplateCopies(Step):
    """Resample results onto the grid of the template."""

    input_spec = TemplateCopiesInputSpec
    name = "template_copies"
    memory_gb = 1.8

    def _process(self, folder: Path) -> None:
        from bagau_bids.preprocessing.transforms import inverse_field, read_itk_forward, sample

        grid = nib.Nifti1Image.from_filename(self.inputs.template_t1w)
        transform = read_itk_forward(Path(self.inputs.template_to_flair_xfm))
        points = inverse_field(transform, grid)
        for key, path, order in (
            ("template_wmh_mask", self.inputs.wmh_mask, 0),
            ("template_wmh_probseg", self.inputs.probability, 1),
            ("template_flair", self.inputs.corrected, 1),
        ):
            copy = Image(sample(load_image(path), points, order), grid.affine)
            target, dtype = folder / f"{key}.nii.gz", catalogue().files[key].dtype
            save_image(target, copy, dtype, standard_space=True)
            self._results["derivatives"][key] = str(target)


class PrepareInputSpec(DynamicTraitedSpec, StepInputSpec):
    """Inputs of `Prepare`, to which it adds those of each step before it."""

    source_file = File(exists=True, mandatory=True, desc="FLAIR as it is in the data set")
    source = traits.Str(mandatory=True, desc="its path relative to the data set")
    entities = traits.Dict(mandatory=True, desc="entities of its name")
    template = traits.Str(mandatory=True, desc="name of the template")
    template_uris = traits.Dict(mandatory=True, desc="BIDS URIs of t1w, wm_probseg, brain_mask")
    brain_mask_uri = traits.Str(usedefault=True, desc="where a mask from elsewhere came from")
    known_lesions_uri = traits.Str(usedefault=True, desc="where the known lesions came from")
    options = traits.Dict(mandatory=True, desc="options of the run that make the result")


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
    helped = True

    def __init__(self, steps: Sequence[str] = (), **inputs: Any) -> None:
        """Take the record and the derivatives of steps, each as ``STEP_record`` and so on."""
        super().__init__(**inputs)
        self.steps = tuple(steps)
        common = StepOutputSpec().copyable_trait_names()
        add_traits(self.inputs, [f"{step}_{output}" for step in steps for output in common])

    def _process(self, folder: Path) -> None:
        tree = folder / "derivatives"
        files = self._files()
        steps = self._steps()
        scan = Provenance(
            entities=self.inputs.entities,
            source=self.inputs.source,
            template=self.inputs.template,
            template_uris=self.inputs.template_uris,
            brain_mask_uri=self.inputs.brain_mask_uri,
            known_lesions_uri=self.inputs.known_lesions_uri,
            infarct="infarct_mask" in files,
            steps=steps,
            threshold=self.inputs.options["threshold"],
            min_lesion_size_mm3=self.inputs.options["min_lesion_size_mm3"],
        )
        self._write_files(tree, files)
        self._write_sidecars(tree, scan, files)
        made = sorted(path.relative_to(tree) for path in tree.rglob("*") if path.is_file())
        record = derivative_path(tree, self.inputs.entities, "record")
        write_json(record, self._record(steps, scan, made))
        absent = [
            self._path(tree, key)
            for key, row in catalogue().files.items()
            if row.kind == "image" and key not in files
        ]
        self._results["stale"] = [
            str(one.relative_to(tree)) for path in absent for one in (path, sidecar_path(path))
        ]
        self._results["tree"] = str(tree)
        names = [str(path) for path in (*made, record.relative_to(tree))]
        self._results["files"] = names
        self._results["digests"] = [file_digest(tree / name) for name in names]

    def _path(self, tree: Path, name: str) -> Path:
        return derivative_path(tree, self.inputs.entities, name, template=self.inputs.template)

    def _files(self) -> dict[str, Path]:
        """Gather what the steps hand over, by key of the catalogue."""
        handed_over = (getattr(self.inputs, f"{step}_derivatives") for step in self.steps)
        return {key: Path(path) for files in handed_over for key, path in files.items()}

    def _steps(self) -> Steps:
        """Read the records of the steps."""
        there = [one for one in msgspec.structs.fields(Steps) if one.name in self.steps]
        return Steps(
            **{
                one.name: read_record(getattr(self.inputs, f"{one.name}_record"), one.type)
                for one in there
            }
        )

    def _write_files(self, tree: Path, files: Mapping[str, Path]) -> None:
        """Bring images back onto the grid of the source; copy what is final already."""
        from bagau_bids.preprocessing.conform import to_source

        source = nib.load(self.inputs.source_file)

        def write(key: str) -> None:
            row, path = catalogue().files[key], self._path(tree, key)
            if row.kind not in ("image", "preview"):
                copy_file(files[key], path)
                return
            data = load_image(str(files[key])).data
            stored = eight_bits(data) if row.kind == "preview" else data.astype(row.dtype)
            path.parent.mkdir(parents=True, exist_ok=True)
            to_source(stored, source, row.dtype).to_filename(path)

        side_by_side(write, files, min(self.inputs.num_threads, WRITERS))

    def _write_sidecars(self, tree: Path, scan: Provenance, files: Iterable[str]) -> None:
        """Write what is known of each file; a table shares the sidecar of its image."""
        described = image_sidecars(scan)
        if "template_flair" in files:
            described |= template_sidecars(scan)
        sidecars = {sidecar_path(self._path(tree, key)): one for key, one in described.items()}
        for key in files:
            row = catalogue().files[key]
            if row.columns:
                known = sidecars.setdefault(sidecar_path(self._path(tree, key)), {})
                known |= column_descriptions(row.columns)
                known |= {"Figures": column_descriptions(row.figures)} if row.figures else {}
        for path, content in sidecars.items():
            write_json(path, content)

    def _record(self, steps: Steps, scan: Provenance, made: list[Path]) -> Record:
        """Describe how the scan was processed, for the reports and the group level."""
        return Record(
            status="complete",
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            source=scan.source_uri,
            entities=self.inputs.entities,
            options=Options(**self.inputs.options),
            versions=library_versions(),
            steps=steps,
            outputs=tuple(path.as_posix() for path in made),
        )


class PutOutInputSpec(StepInputSpec):
    """Inputs of `PutOut`."""

    tree = Directory(exists=True, mandatory=True)
    files = InputMultiObject(traits.Str(), mandatory=True, desc="paths relative to the tree")
    stale = traits.List(traits.Str(), desc="likewise, of what this run does not make")
    digests = InputMultiObject(traits.Str(), mandatory=True, desc="SHA-256 of each")
    output_dir = Directory(mandatory=True, desc="root of the derivative data set")
    entities = traits.Dict(mandatory=True, desc="entities of the scan's name")


class PutOutOutputSpec(StepOutputSpec):
    """Outputs of `PutOut`."""

    written = traits.List(traits.Str(), desc="paths of files that were not there already")


class PutOut(Step):
    """Copy a scan's derivatives into the output folder, each in one step, where they differ.

    Nothing is copied where one of them is not as it was when it was made. A mask that a person
    has edited is kept before the network's takes its place.
    """

    input_spec = PutOutInputSpec
    output_spec = PutOutOutputSpec
    name = "put_out"
    memory_gb = 0.3
    ends_scan = True

    @property
    def always_run(self) -> bool:
        """Whether the output folder is not as the step would leave it, by nipype's name for it.

        True, too, while nipype has not given the step its inputs yet, and where a file cannot be
        read, of which the step will tell.
        """
        try:
            return not isdefined(self.inputs.files) or not self._in_place()
        except OSError:
            return True

    def _in_place(self) -> bool:
        given = self.inputs
        tree, output_dir = Path(given.tree), Path(given.output_dir)
        stale = given.stale if isdefined(given.stale) else []
        return not any((output_dir / name).is_file() for name in stale) and all(
            path.is_file() and file_digest(path) == digest
            for name, digest in zip(given.files, given.digests, strict=True)
            for path in (tree / name, output_dir / name)
        )

    def _folders(self, folder: Path) -> tuple[Path, ...]:
        return (folder, Path(self.inputs.output_dir))

    def _process(self, folder: Path) -> None:
        tree, output_dir = Path(self.inputs.tree), Path(self.inputs.output_dir)
        for name, digest in zip(self.inputs.files, self.inputs.digests, strict=True):
            if not (tree / name).is_file() or file_digest(tree / name) != digest:
                raise ProcessingError(damaged(tree / name, "not as it was written"))
        self._keep_edited(output_dir, derivative_path(tree, self.inputs.entities, "wmh_mask"))
        self._results["written"] = [
            name for name in self.inputs.files if copy_file(tree / name, output_dir / name)
        ]
        if isdefined(self.inputs.stale):
            left = [output_dir / name for name in self.inputs.stale]
            remove_stale(left, "this run was not asked for it, or has no such mask")

    def _keep_edited(self, output_dir: Path, made: Path) -> None:
        entities = self.inputs.entities
        mask = derivative_path(output_dir, entities, "wmh_mask")
        if same_content(made, mask):
            return  # as it mostly is; its voxels need not be read
        if was_edited(output_dir, entities):
            keep(mask, output_dir, entities, made)


def eight_bits(data: NDArray) -> NDArray[np.uint8]:
    """Brightness from 0 to the 99.9th percentile in steps 0 to 255, for an image to look at.

    Where values are negative the lowest is shown as 0.
    """
    low, high = min(0.0, float(data.min())), float(np.percentile(data, BRIGHTEST_PERCENTILE))
    scaled = (data - low) / ((high - low) or 1.0)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def library_versions() -> dict[str, str]:
    """Versions of the program, of Python, and of the libraries that results depend on."""
    versions = {"bagau-bids": __version__, "python": platform.python_version()}
    return versions | {name: version(name) for name in LIBRARIES}

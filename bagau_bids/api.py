"""Segmenting from Python: one FLAIR in, its mask, probability and measures out."""

import io
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bagau_bids.bids.plain import PLAIN_NAMES, lay_out, name_scans, take_results
from bagau_bids.cli.parser import parse
from bagau_bids.config import Config, Processing, Selection
from bagau_bids.datasets.dicom import convert_folders
from bagau_bids.errors import InputImageError, UsageError
from bagau_bids.options import option_words

if TYPE_CHECKING:
    import nibabel as nib
    import pandas as pd
    from nilearn.plotting.displays import OrthoSlicer

_ONE_AT_A_TIME = threading.Lock()
SHOWN = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the lesions' height, from the lowest to the highest


@dataclass(frozen=True)
class Segmentation:
    """White matter hyperintensities of one FLAIR, on the grid of its file.

    What is read of it lasts; what was not is gone with the object, unless `save` has copied it.

    Attributes
    ----------
    name : str
        Of the scan.
    flags : tuple of str
        What asks for a look, each in a sentence; empty where nothing does.
    """

    name: str
    flags: tuple[str, ...]
    _folder: Path
    _flair: Path
    _temporary: "TemporaryDirectory[str]" = field(repr=False)

    @cached_property
    def flair(self) -> "nib.Nifti1Image":
        """The FLAIR as it was given."""
        return _image(self._flair)

    @cached_property
    def mask(self) -> "nib.Nifti1Image":
        """White matter hyperintensities: 1, else 0 (uint8)."""
        return _image(self._folder / PLAIN_NAMES["wmh_mask"])

    @cached_property
    def probability(self) -> "nib.Nifti1Image":
        """Probability of white matter hyperintensity, from 0 to 1 (float32)."""
        return _image(self._folder / PLAIN_NAMES["wmh_probseg"])

    @cached_property
    def brain_mask(self) -> "nib.Nifti1Image":
        """The brain: 1, else 0 (uint8)."""
        return _image(self._folder / PLAIN_NAMES["brain_mask"])

    @cached_property
    def volumes(self) -> "pd.DataFrame":
        """Volumes and numbers of lesions, a row a region; ``all`` is the first."""
        return self._table("volumes_table").set_index("region")

    @cached_property
    def lesions(self) -> "pd.DataFrame":
        """Volume, place and probability of each lesion, a row a lesion."""
        return self._table("lesions_table")

    @cached_property
    def quality(self) -> "pd.DataFrame":
        """Quality figures with their limits, a row a figure."""
        return self._table("quality_table").set_index("figure")

    @property
    def volume_ml(self) -> float:
        """Volume of all white matter hyperintensities."""
        return float(self.volumes["volume_mm3"]["all"]) / 1000

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the results into a folder, which is made where missing: images, tables, page.

        Returns
        -------
        Path
            The folder.
        """
        target = Path(folder)
        shutil.copytree(self._folder, target, dirs_exist_ok=True)
        return target

    def show(self) -> "OrthoSlicer":
        """Draw the outline of the mask on axial slices of the FLAIR, where the lesions are.

        Returns
        -------
        nilearn display
            A notebook shows it; ``display.savefig(path)`` keeps it.
        """
        import numpy as np
        from nilearn import plotting

        brain = np.asanyarray(self.brain_mask.dataobj) != 0
        lesions = np.asanyarray(self.mask.dataobj) != 0
        shown = np.argwhere(lesions if lesions.any() else brain)
        heights_mm = shown @ self.mask.affine[2, :3] + self.mask.affine[2, 3]
        display = plotting.plot_anat(
            self.flair,
            display_mode="z",
            cut_coords=np.unique(np.quantile(heights_mm, SHOWN)),
            title=f"{self.name}: {self.volume_ml:.2f} ml",
            vmin=0,
            vmax=np.percentile(self.flair.get_fdata()[brain], 99.9),
            colorbar=False,
        )
        display.add_contours(self.mask, levels=[0.5], colors="r", linewidths=0.8)
        return display

    def _table(self, key: str) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_csv(self._folder / PLAIN_NAMES[key], sep="\t", na_values="n/a")


def segment_flair(
    flair: "str | os.PathLike[str] | nib.Nifti1Image",
    *,
    model: str = "small",
    threshold: float = 0.5,
    device: str = "auto",
    offline: bool = False,
    series: int | None = None,
    **options: Any,
) -> Segmentation:
    """Segment white matter hyperintensities in one FLAIR; the same as ``bagau-bids`` does.

    Parameters
    ----------
    flair : path or nibabel image
        A NIfTI file of any name, a folder of DICOM files (of which the series that is a FLAIR
        is taken), or an image in memory.
    model : {'small', 'full'}
        Packaged weights.
    threshold : float
        Probability from which on a voxel is WMH.
    device : {'auto', 'cpu', 'cuda', 'cuda:N'}
        Where the network runs; auto: CUDA if usable.
    offline : bool
        Never use the network, but the template that ``bagau fetch`` got.
    series : int, optional
        Number of the DICOM series to take, where the headers do not tell one FLAIR.
    **options
        Other fields of `bagau_bids.config.Processing`, such as ``tta=True``,
        ``weights=(path,)``, ``min_lesion_size_mm3=3.0`` or ``templateflow_home=path``.

    Returns
    -------
    Segmentation

    Raises
    ------
    UsageError
        If the path is no NIfTI file, the folder has not one FLAIR, or an option has a value
        that the command line refuses.
    InputImageError
        If the image cannot be processed, with the reason.
    MissingResourceError
        If weights or the template are missing.
    TypeError
        If an option is not known.

    Notes
    -----
    Calls from several threads wait for each other: nipype changes the working folder of the
    process while it runs.

    Examples
    --------
    >>> from bagau_bids import segment_flair
    >>> found = segment_flair("patient1_FLAIR.nii.gz")  # doctest: +SKIP
    >>> found.volume_ml  # doctest: +SKIP
    9.31
    >>> found.save("patient1")  # doctest: +SKIP
    """
    said = Processing(model=model, threshold=threshold, offline=offline, **options)
    with _ONE_AT_A_TIME:
        temporary = TemporaryDirectory(prefix="bagau-")
        root = Path(temporary.name)
        config = _config(said, device, root)
        given = name_scans([_path_of(flair, root)])
        scans = convert_folders(given, root / "sourcedata", series)
        ((name, path),) = scans.items()
        (label,) = lay_out(config.bids_dir, scans).values()
        with _nipype_held():
            flags = _process(config, path)
        take_results(config.output_dir, label, root / "results", complete=True, name=name)
        shutil.rmtree(config.execution.work_dir)
    return Segmentation(name, flags, root / "results", path, temporary)


def _config(processing: Processing, device: str, root: Path) -> Config:
    """Return the configuration of a run in a folder, its options checked as the command's are."""
    (root / "bids").mkdir()
    words = [str(root / "bids"), str(root / "derivatives"), "participant", "--nprocs", "1"]
    words += ["--work-dir", str(root / "work"), "--device", device, *option_words(processing)]
    with redirect_stderr(io.StringIO()) as said:
        try:
            return parse(words)
        except SystemExit:
            reason = said.getvalue().strip().rpartition("error: ")[2]
    raise UsageError(f"segment_flair: {reason}")


def _path_of(flair: "str | os.PathLike[str] | nib.Nifti1Image", root: Path) -> Path:
    """Return the file of an image; one that is in memory is written."""
    import nibabel as nib

    if isinstance(flair, str | os.PathLike):
        return Path(flair).absolute()
    if not isinstance(flair, nib.spatialimages.SpatialImage):
        raise UsageError(
            f"a {type(flair).__name__} was given; expected a path or a nibabel image, for example "
            "nibabel.Nifti1Image(array, affine)"
        )
    path = root / "flair.nii.gz"
    nib.Nifti1Image.from_image(flair).to_filename(path)
    return path


def _process(config: Config, path: Path) -> tuple[str, ...]:
    """Process the one scan of a data set and write its page; return what asks for a look.

    `path` is the file that the user knows, to be named in errors.
    """
    from bagau_bids.bids.scans import find_scans
    from bagau_bids.cli.app import find_networks
    from bagau_bids.preprocessing.template import find_template
    from bagau_bids.reports.participant import write_participant_report
    from bagau_bids.reports.results import find_results
    from bagau_bids.workflow.run import run_participants

    processing = config.processing
    networks = find_networks(processing)
    template = find_template(
        processing.template,
        processing.templateflow_home,
        offline=processing.offline,
        cache_dir=config.execution.work_dir / "templates",
    )
    scans = find_scans(config.bids_dir, Selection())
    (outcome,) = run_participants(config, scans, template, networks, _Silent())
    if not outcome.ok:
        raise InputImageError(outcome.reason.replace(str(outcome.scan.path), str(path)))
    write_participant_report(config.output_dir, outcome.scan.subject)
    (results,) = find_results(config.output_dir)
    return tuple(flag.words for flag in results.flags)


@contextmanager
def _nipype_held() -> Iterator[None]:
    """Keep nipype from telling of each step, which it does on stderr."""
    logger = logging.getLogger("nipype")
    handlers, logger.handlers = logger.handlers, [logging.NullHandler()]
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


class _Silent:
    """A progress of which nothing is told."""

    def step_started(self, scan: str, step: str) -> None:
        """Say nothing."""

    def step_finished(self, scan: str, step: str, seconds: float) -> None:
        """Say nothing."""

    def scan_finished(self, scan: str) -> None:
        """Say nothing."""

    def scan_failed(self, scan: str, reason: str) -> None:
        """Say nothing."""


def _image(path: Path) -> "nib.Nifti1Image":
    """Load an image whole, so that it outlasts its file."""
    import nibabel as nib
    import numpy as np

    image = nib.Nifti1Image.from_filename(path)
    return nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine)

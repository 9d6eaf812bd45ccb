"""What all steps share: they are timed, leave a record, say why one failed; images and threads.

All images between the steps lie on the conformed grid (RAS+ voxel order, float32, see
`bagau_bids.preprocessing.conform`). Every step writes a record of what it did: its notes, its
figures, how long it took. What does not change a result (threads, device, compression) is left
out of the hash by which nipype decides whether a step must run again; the version of the
program is part of it. Heavy libraries are imported when a step runs, not before.
"""

import os
import pdb
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec
import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    Undefined,
    isdefined,
    traits,
)
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import threadpool_limits

from bagau_bids import __version__
from bagau_bids.bids.derivatives import catalogue
from bagau_bids.bids.records import StepRecord
from bagau_bids.disk import full_disk_message, is_full_disk, temporaries_in
from bagau_bids.errors import BagauError, ProcessingError
from bagau_bids.files import together, write_json, write_table
from bagau_bids.spaces import Image, OnGrid, same_grid

if TYPE_CHECKING:
    import pandas as pd

FAILURE_FILE = "failure.json"
RECORD_FILE = "record.json"
STEPS_LOCK = ".steps.lock"  # in a scan's work folder; held by its steps while they are at work
NO_MEMORY = ("can't allocate memory", "std::bad_alloc", "Cannot allocate memory")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
Record = TypeVar("Record")


class StepFailure(msgspec.Struct, frozen=True):
    """Why a step failed, and whether the message explains itself to a user."""

    explained: bool
    message: str


class StepInputSpec(BaseInterfaceInputSpec):
    """Inputs that every step has."""

    version = traits.Str(__version__, usedefault=True, desc="version of the program")
    compress = traits.Bool(True, usedefault=True, nohash=True, desc="gzip images between steps")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads the step may use")
    debug = traits.Bool(False, usedefault=True, nohash=True, desc="open the debugger on an error")


class StepOutputSpec(TraitedSpec):
    """Outputs that every step has."""

    record = File(desc="JSON: notes, figures and duration of the step")
    derivatives = traits.Dict(
        traits.Str(), File(exists=True), desc="files to put out, by their key in the catalogue"
    )


class Step(SimpleInterface):
    """Base of the steps: times them, writes their record, and says why one failed.

    Attributes
    ----------
    name
        Of its node, its work folder and its record.
    memory_gb
        Peak memory of the process that runs it, its libraries and children included: measured on
        320x320x48 voxels, rounded up for larger scans.
    threaded
        Whether it uses more than one thread.
    helped
        Whether it uses more than one for moments, which are not counted when steps are planned.
    ends_scan
        Whether all outputs of the scan are written when it is done.
    """

    input_spec = StepInputSpec
    output_spec = StepOutputSpec
    name: ClassVar[str]
    memory_gb: ClassVar[float]
    threaded: ClassVar[bool] = False
    helped: ClassVar[bool] = False
    ends_scan: ClassVar[bool] = False

    def _run_interface(self, runtime: Any) -> Any:
        folder = Path(runtime.cwd)
        self._results["derivatives"] = {}
        started = time.monotonic()
        with self._telling_why(folder):
            with (
                together(_steps_lock(folder)),
                temporaries_in(folder),
                limited_threads(self.inputs.num_threads),
            ):
                record = self._process(folder)
            if record is not None:
                duration_s = round(time.monotonic() - started, 1)
                record = msgspec.structs.replace(record, duration_s=duration_s)
                write_json(folder / RECORD_FILE, record)
                self._results["record"] = str(folder / RECORD_FILE)
        own = {key: row for key, row in catalogue().files.items() if row.step == self.name}
        needed = {key for key, row in own.items() if not row.optional and row.kind != "record"}
        assert needed <= self._results["derivatives"].keys() <= own.keys(), self.name
        return runtime

    def _process(self, folder: Path) -> StepRecord | None:
        """Do the work inside `folder`, set the outputs, and return the step's record.

        A step that only brings files into another form has none.
        """
        raise NotImplementedError

    def _folders(self, folder: Path) -> tuple[Path, ...]:
        """Folders that the step writes to, one of which may be on a full disk."""
        return (folder,)

    @contextmanager
    def _telling_why(self, folder: Path) -> Iterator[None]:
        """Leave a file in `folder` that says why the block failed, for who tells the user."""
        try:
            yield
        except Exception as error:
            with suppress(OSError):  # on a full disk: what started the step looks at that, too
                write_json(folder / FAILURE_FILE, describe_failure(error, self._folders(folder)))
            if self.inputs.debug:
                pdb.post_mortem(error.__traceback__)
            raise

    def _load_scan(self, path: str) -> tuple[Image, NDArray[np.bool_], NDArray[np.bool_] | None]:
        """Load an image of the scan, and the step's brain mask and known lesions on its grid.

        The latter are None where the step does not ask for them or the user named none.
        """
        scan = load_image(path)
        mask = load_on_grid(self.inputs.brain_mask, scan) > 0
        lesions = getattr(self.inputs, "known_lesions", Undefined)
        return scan, mask, load_on_grid(lesions, scan) > 0 if isdefined(lesions) else None

    def _save(self, output: str, folder: Path, image: Image, dtype: DTypeLike) -> str:
        """Save an image of the conformed grid in `folder`, as the output of that name."""
        path = folder / f"{output}.nii{'.gz' if self.inputs.compress else ''}"
        save_image(path, image, dtype)
        self._results[output] = str(path)
        return str(path)

    def _derive(self, key: str, folder: Path, image: Image, output: str = "") -> None:
        """Save a derivative in `folder`, with its type on disk; as an output too, if named."""
        path = self._save(output or key, folder, image, catalogue().files[key].dtype)
        if not output:
            del self._results[key]
        self._results["derivatives"][key] = path

    def _tabulate(self, key: str, folder: Path, table: "pd.DataFrame") -> None:
        """Write a table in `folder`, as a derivative."""
        write_table(folder / f"{key}.tsv", table)
        self._results["derivatives"][key] = str(folder / f"{key}.tsv")


class TissueInputSpec(StepInputSpec):
    """Inputs of a step to which known lesions are no tissue."""

    known_lesions = File(exists=True, desc="infarct, tumour, resection ...; conformed grid")


def without(mask: NDArray[np.bool_], known: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return a mask, (X, Y, Z) bool, less the known lesions."""
    return mask if known is None else mask & ~known


def _steps_lock(folder: Path) -> Path:
    """Find the lock of the scan's work folder, which a step's folder lies in, at any depth."""
    return next(
        (path for above in folder.parents if (path := above / STEPS_LOCK).exists()),
        folder / STEPS_LOCK,
    )


def describe_failure(error: BaseException, folders: Sequence[Path] = ()) -> StepFailure:
    """Say what went wrong.

    Parameters
    ----------
    error
        What was raised.
    folders
        Those that were written to, one of which may be on a full disk.
    """
    message = str(error).strip() or "no message"
    if isinstance(error, BagauError) and not is_full_disk(error):
        return StepFailure(True, message)
    if is_full_disk(error):
        return StepFailure(True, full_disk_message(folders))
    if isinstance(error, MemoryError) or any(words in message for words in NO_MEMORY):
        short = " ".join(message.split())[:200]
        advice = "give the run more memory, or fewer steps at once with --nprocs or --mem-gb"
        return StepFailure(True, f"ran out of memory ({short}); {advice}")
    first_line = message.splitlines()[0]  # the crash file holds all of it
    return StepFailure(False, f"{type(error).__name__}: {first_line}")


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
    path: Path, image: Image, dtype: DTypeLike, *, standard_space: bool = False
) -> None:
    """Save an image as NIfTI-1.

    sform and qform both hold the affine; their codes are 4 in a standard space, else 1.
    """
    stored = nib.Nifti1Image(image.data.astype(dtype), image.affine)
    code = 4 if standard_space else 1
    stored.set_sform(image.affine, code)
    stored.set_qform(image.affine, code)
    stored.header.set_xyzt_units("mm")
    stored.to_filename(path)


def load_image(path: str) -> Image:
    """Load a step's image, float32.

    Raises
    ------
    ProcessingError
        If the file is damaged.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        return Image(np.asarray(image.dataobj, dtype=np.float32), image.affine)
    except (EOFError, OSError, ValueError, zlib.error, ImageFileError) as error:
        raise ProcessingError(damaged(path, error)) from error


def load_on_grid(path: str, scan: OnGrid) -> NDArray[np.float32]:
    """Load a step's image that must lie on the grid of the scan.

    Raises
    ------
    ProcessingError
        If it does not.
    """
    found = load_image(path)
    if not same_grid(found, scan):
        raise ProcessingError(
            f"{path}: lies on another grid than the scan it belongs to, {found.shape} "
            f"instead of {scan.shape}; remove the work folder and run again"
        )
    return found.data


def load_points(path: str) -> Image:
    """Load the lattice that `Registration` puts out: (3, I, J, K) mm, places in the template."""
    stored = load_image(path)
    return Image(np.moveaxis(stored.data, -1, 0), stored.affine)


def read_record(path: str | Path, kind: type[Record]) -> Record:
    """Read the record of a step.

    Raises
    ------
    ProcessingError
        If the file is damaged.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=kind)
    except (OSError, ValueError) as error:
        raise ProcessingError(damaged(path, error)) from error


def damaged(path: str | Path, error: object) -> str:
    """Say that a file in the work folder is damaged, and what to do."""
    return (
        f"{path}: a file of an earlier step is damaged ({error}); run the same command with "
        "--clean-workdir, which computes all steps anew"
    )

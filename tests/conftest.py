"""Fixtures that several test files share."""

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings

# The same examples on every run: what fails here, fails everywhere.
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")

# Threads that wait for a busy core make the tests' small products many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


def _existing_folder(variable, default):
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; set {variable} to run this test")
    return folder


@pytest.fixture(scope="session")
def repository():
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data():
    """Folder with the clinical data sets, which are not part of the repository."""
    return _existing_folder("BAGAU_TEST_DATA", REPOSITORY.parent / "shared" / "data")


@pytest.fixture(scope="session")
def templateflow_home():
    """A TemplateFlow store that holds MNI152NLin2009cSym res-1."""
    return _existing_folder(
        "BAGAU_TEST_TEMPLATEFLOW", REPOSITORY.parent / "shared" / "templateflow"
    )


@pytest.fixture(scope="session")
def shared_tools():
    """Folder with scripts that start services for tests."""
    return _existing_folder("BAGAU_TEST_TOOLS", REPOSITORY.parent / "shared" / "tools")


@dataclass(frozen=True)
class ProcessedPhantom:
    """Folders of a phantom of one participant, and the exit code of the run over it."""

    bids: Path
    derivatives: Path
    exit_code: int


@pytest.fixture(scope="session")
def processed_phantom(tmp_path_factory):
    """A phantom that went through the whole tool: real steps, no network. Not to be changed."""
    from bagau_bids.cli.app import main
    from bagau_bids.datasets.phantom import make_phantom_dataset

    folder = tmp_path_factory.mktemp("phantom")
    data, out = folder / "data", folder / "out"
    make_phantom_dataset(data, subjects=1, seed=1)
    code = main(
        [
            *(str(data), str(out), "participant", "group", "--work-dir", str(folder / "work")),
            *("--template", "ICBM152NLin2009aSym", "--offline", "--nprocs", "1"),
            *("--output-spaces", "orig", "ICBM152NLin2009aSym"),
        ]
    )
    return ProcessedPhantom(data, out, code)


def _rotation(axis, degrees):
    angle = np.deg2rad(degrees)
    i, j = (k for k in range(3) if k != axis)
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


@pytest.fixture(params=["RAS", "LAS", "LPS", "oblique"])
def oriented_image(request):
    """One small anisotropic image of random numbers, stored in one orientation after another.

    The RAS image is the reference; the others are the same voxels flipped, and one is tilted.
    """
    rng = np.random.default_rng(7)
    affine = np.diag([1.5, 2.0, 4.0, 1.0])
    affine[:3, 3] = -12.0, 8.0, -20.0
    image = nib.Nifti1Image(rng.uniform(1, 100, (11, 13, 7)).astype(np.float32), affine)
    if request.param == "oblique":
        tilt = np.eye(4)
        tilt[:3, :3] = _rotation(0, 17) @ _rotation(2, -9)
        return nib.Nifti1Image(image.dataobj, tilt @ affine)
    return image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(request.param)
        )
    )

"""Elastix in a process of its own: a crash of the library ends the child, not the program.

The parent writes a job into a folder (`run_elastix`); the child, ``python -m
bagau_bids.preprocessing.elastix FOLDER PARENT``, reads it, registers and writes the transform
parameters back. Images travel as ``.npy`` files with RAS+ affines; elastix itself works in
ITK's LPS+ world.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bagau_bids.errors import ProcessingError
from bagau_bids.files import write_text
from bagau_bids.processes import end_with_parent, module_command
from bagau_bids.spaces import Image

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ParameterMap = dict[str, tuple[str, ...]]


def run_elastix(
    fixed: Image,
    moving: Image,
    fixed_mask: npt.NDArray[np.bool_],
    parameter_maps: Sequence[ParameterMap],
    start: npt.NDArray[np.float64],
    *,
    seed: int = 0,
    threads: int = 1,
) -> list[ParameterMap]:
    """Register `moving` to `fixed` with one elastix stage a parameter map.

    Parameters
    ----------
    fixed, moving
        Images whose affines have orthogonal directions.
    fixed_mask
        (X, Y, Z) of `fixed`; samples are drawn inside it.
    parameter_maps
        elastix parameters, one map a stage, in order.
    start
        (4, 4) affine from fixed to moving points, mm, RAS+, where the first stage starts.
    seed
        Seed of the random sampler.
    threads
        Number of threads of elastix; results are equal for equal numbers.

    Returns
    -------
    list of parameter maps
        The transform of each stage, in ITK's LPS+ world, the start not included. The whole
        transform takes a fixed point through the start, then through each stage in order.

    Raises
    ------
    ProcessingError
        When elastix fails or its process dies; the message ends with the elastix log's tail.
    """
    with tempfile.TemporaryDirectory(prefix="bagau-elastix-") as name:
        folder = Path(name)
        for role, volume in (("fixed", fixed), ("moving", moving)):
            np.save(folder / f"{role}.npy", volume.data.astype(np.float32))
        np.save(folder / "fixed_mask.npy", fixed_mask.astype(np.uint8))
        stages = [
            {
                **parameters,
                "RandomSeed": (str(seed),),
                "AutomaticTransformInitialization": ("false",),
            }
            for parameters in parameter_maps
        ]
        job = {
            "fixed_affine": fixed.affine.tolist(),
            "moving_affine": moving.affine.tolist(),
            "start": start.tolist(),
            "stages": stages,
            "threads": threads,
        }
        (folder / "job.json").write_text(json.dumps(job))
        _run_child(folder, threads)
        results = json.loads((folder / "result.json").read_text())
    return [{key: tuple(values) for key, values in result.items()} for result in results]


def _run_child(folder: Path, threads: int) -> None:
    environment = os.environ | {
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "child.log").open("w") as log:
        done = subprocess.run(
            module_command(__spec__.name, str(folder), str(os.getpid())),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if done.returncode == 0 and (folder / "result.json").is_file():
        return
    if done.returncode < 0:
        how = f"was ended by signal {signal.Signals(-done.returncode).name}"
    else:
        how = f"ended with exit code {done.returncode}"
    tail = []
    for name in ("elastix.log", "child.log"):
        if (folder / name).is_file():
            tail += (folder / name).read_text(errors="replace").strip().splitlines()[-5:]
    raise ProcessingError(
        f"the process of elastix {how} instead of returning a transform; "
        f"its last words: {' | '.join(tail) or '(none)'}"
    )


def read_parameter_file(path: Path) -> ParameterMap:
    """Read an elastix parameter file: lines of ``(Name value ...)``, ``//`` for comments."""
    parameters: ParameterMap = {}
    for line in path.read_text().splitlines():
        text = line.split("//")[0].strip()
        if text:
            name, *values = text.strip("()").split()
            parameters[name] = tuple(value.strip('"') for value in values)
    return parameters


def _register(folder: Path) -> None:
    """Do the job in `folder`: the child's side."""
    # The public ``itk.ElastixRegistrationMethod`` loads every wrapped ITK module first, which
    # takes 9 s; the module that holds the class takes 2 s.
    import itk
    from itk.elxParameterObjectPython import elastixParameterObject
    from itk.itkElastixRegistrationMethodPython import itkElastixRegistrationMethodIF3IF3

    job = json.loads((folder / "job.json").read_text())

    def image(role: str, affine: list[list[float]]) -> Any:
        data = np.load(folder / f"{role}.npy")
        lps = RAS_TO_LPS @ np.asarray(affine)
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        result = itk.image_from_array(np.ascontiguousarray(data.T))
        result.SetSpacing(spacing.tolist())
        result.SetOrigin(lps[:3, 3].tolist())
        result.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
        return result

    parameters = elastixParameterObject.New()
    for stage in job["stages"]:
        parameters.AddParameterMap(stage)
    start = RAS_TO_LPS @ np.asarray(job["start"]) @ RAS_TO_LPS
    start_file = folder / "start.txt"
    start_file.write_text(_affine_parameter_text(start))

    method = itkElastixRegistrationMethodIF3IF3.New()
    method.SetFixedImage(image("fixed", job["fixed_affine"]))
    method.SetMovingImage(image("moving", job["moving_affine"]))
    method.SetFixedMask(image("fixed_mask", job["fixed_affine"]))
    method.SetParameterObject(parameters)
    method.SetInitialTransformParameterFileName(str(start_file))
    method.SetNumberOfThreads(job["threads"])
    method.LogToConsoleOff()
    method.LogToFileOn()
    method.SetOutputDirectory(str(folder))
    method.SetLogFileName("elastix.log")
    method.Update()
    transforms = method.GetTransformParameterObject()
    results = [
        dict(transforms.GetParameterMap(index))
        for index in range(transforms.GetNumberOfParameterMaps())
    ]
    write_text(folder / "result.json", json.dumps(results[-len(job["stages"]) :]))


def _affine_parameter_text(matrix: npt.NDArray[np.float64]) -> str:
    numbers = " ".join(repr(float(v)) for v in (*matrix[:3, :3].ravel(), *matrix[:3, 3]))
    return "\n".join(
        (
            '(Transform "AffineTransform")',
            "(NumberOfParameters 12)",
            f"(TransformParameters {numbers})",
            '(InitialTransformParametersFileName "NoInitialTransform")',
            '(InitialTransformParameterFileName "NoInitialTransform")',
            '(HowToCombineTransforms "Compose")',
            "(FixedImageDimension 3)",
            "(MovingImageDimension 3)",
            '(FixedInternalImagePixelType "float")',
            '(MovingInternalImagePixelType "float")',
            "(CenterOfRotationPoint 0 0 0)",
            "(Size 1 1 1)",
            "(Index 0 0 0)",
            "(Spacing 1 1 1)",
            "(Origin 0 0 0)",
            "(Direction 1 0 0 0 1 0 0 0 1)",
            '(UseDirectionCosines "true")',
            "",
        )
    )


if __name__ == "__main__":
    # Without it, a worker that was ended from outside would leave elastix running for minutes.
    end_with_parent(int(sys.argv[2]))
    _register(Path(sys.argv[1]))

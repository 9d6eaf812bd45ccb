"""Elastix in a process of its own: a crash of the library ends the child, not the program.

The child, ``python -m bagau_bids.preprocessing.elastix FOLDER PARENT``, loads elastix and waits
for a line from the parent, which has written a job into the folder by then (`Elastix`); it
registers and writes the transform parameters back. Images travel as ``.npy`` files with RAS+
affines; elastix itself works in ITK's LPS+ world.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bagau_bids.errors import ProcessingError
from bagau_bids.files import write_text
from bagau_bids.processes import end_with_parent, module_command
from bagau_bids.spaces import Image

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ParameterMap = dict[str, tuple[str, ...]]


class Elastix:
    """elastix, each registration in a process of its own.

    The first process is started with the context and loads elastix, which takes seconds, while
    what it will register is still being prepared.

    Parameters
    ----------
    threads
        Number of threads of elastix; results are equal for equal numbers.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._waiting: _Child | None = None

    def __enter__(self) -> Self:
        """Start the first process."""
        self._waiting = _Child(self._threads)
        return self

    def __exit__(self, *_: object) -> None:
        """End a process that was given nothing to do."""
        if self._waiting is not None:
            self._waiting.close()

    def register(
        self,
        fixed: Image,
        moving: Image,
        fixed_mask: npt.NDArray[np.bool_],
        parameter_maps: Sequence[ParameterMap],
        start: npt.NDArray[np.float64],
        *,
        seed: int = 0,
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
            "threads": self._threads,
        }
        arrays: dict[str, npt.NDArray[Any]] = {
            "fixed": fixed.data.astype(np.float32),
            "moving": moving.data.astype(np.float32),
            "fixed_mask": fixed_mask.astype(np.uint8),
        }
        child, self._waiting = self._waiting or _Child(self._threads), None
        try:
            results = child.do(job, arrays)
        finally:
            child.close()
        return [{key: tuple(values) for key, values in result.items()} for result in results]


class _Child:
    """A process that loads elastix, waits for one job in its folder, and does it."""

    def __init__(self, threads: int) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="bagau-elastix-")
        self._folder = Path(self._temporary.name)
        environment = os.environ | {
            "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
            "OMP_NUM_THREADS": "1",
        }
        with (self._folder / "child.log").open("w") as log:
            self._process = subprocess.Popen(
                module_command(__spec__.name, str(self._folder), str(os.getpid())),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def do(
        self, job: Mapping[str, object], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> list[dict[str, list[str]]]:
        """Hand the job over, wait for its end, and return the parameters of each stage."""
        for name, array in arrays.items():
            np.save(self._folder / f"{name}.npy", array)
        (self._folder / "job.json").write_text(json.dumps(job))
        self._process.communicate(b"go\n")
        done = self._folder / "result.json"
        if self._process.returncode == 0 and done.is_file():
            results: list[dict[str, list[str]]] = json.loads(done.read_text())
            return results
        raise ProcessingError(
            f"the process of elastix {self._how_it_ended()} instead of returning a transform; "
            f"its last words: {' | '.join(self._last_words()) or '(none)'}"
        )

    def close(self) -> None:
        """End the process, if it has not ended by itself, and remove its folder."""
        self._process.kill()
        self._process.communicate()
        self._temporary.cleanup()

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        if code < 0:
            return f"was ended by signal {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def _last_words(self) -> list[str]:
        tail = []
        for name in ("elastix.log", "child.log"):
            if (self._folder / name).is_file():
                text = (self._folder / name).read_text(errors="replace")
                tail += text.strip().splitlines()[-5:]
        return tail


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
    # Where PyTorch is installed, ITK's modules load it for arguments of its kind: 2 s, unused.
    from itk.support import helpers

    helpers._HAVE_TORCH = False
    # The public ``itk.ElastixRegistrationMethod`` loads every wrapped ITK module first, which
    # takes 9 s; the module that holds the class takes less than 1 s.
    import itk
    from itk.elxParameterObjectPython import elastixParameterObject
    from itk.itkElastixRegistrationMethodPython import itkElastixRegistrationMethodIF3IF3

    itk.image_from_array(np.zeros((2, 2, 2), np.float32))  # loads what it takes
    if not sys.stdin.readline():
        return  # the parent has nothing to register
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

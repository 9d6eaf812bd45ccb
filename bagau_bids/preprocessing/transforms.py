"""The transform between a FLAIR and the template: mapping points, warping images, ITK files.

World coordinates are millimetres in RAS+ (nibabel's); ITK files hold LPS+. The *forward*
transform takes a point of the FLAIR to the point of the template that lies in the same
anatomy. Sampling the template there resamples it onto the FLAIR, which is why the file of the
forward transform is named ``from-<template>_to-FLAIR``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bagau_bids.errors import ProcessingError
from bagau_bids.preprocessing.hdf5_times import forget_times
from bagau_bids.processes import side_by_side
from bagau_bids.spaces import Image, OnGrid, voxel_sizes

Array = npt.NDArray[np.floating[Any]]
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
LPS_SIGNS = np.array([-1.0, -1.0, 1.0])[:, None, None, None]  # of displacements (3, I, J, K)


@dataclass(frozen=True)
class TemplateTransform:
    """Affine, then a cubic B-spline: FLAIR points (mm, RAS+) to template points (mm, RAS+).

    A point x goes to z = affine x, then to z + d(z), where d is the B-spline.

    Attributes
    ----------
    affine
        (4, 4).
    bspline
        (3, I, J, K), mm, the displacement along R, A and S held by each node of the B-spline's
        grid, which lies in the world of z; None for an affine transform.
    threads
        That compute displacements, up to three; these do not depend on them.
    """

    affine: Array
    bspline: Image | None = None
    threads: int = 1

    def affine_only(self) -> "TemplateTransform":
        """Return the transform without its B-spline."""
        return TemplateTransform(self.affine)

    def displacement(self, points: Array) -> Array:
        """Return the B-spline's displacement d at affinely mapped points z.

        Parameters
        ----------
        points
            (3, ...) mm, RAS+.

        Returns
        -------
        (3, ...) mm; zero outside the grid.
        """
        if self.bspline is None:
            return np.zeros_like(points)
        index = _apply(np.linalg.inv(self.bspline.affine), points)
        read_off = partial(
            ndimage.map_coordinates, coordinates=index, order=3, prefilter=False, mode="constant"
        )
        return np.stack(side_by_side(read_off, self.bspline.data, self.threads))

    def map_points(self, points: Array) -> Array:
        """Take FLAIR points to template points, both (3, ...) in mm, RAS+."""
        mapped = _apply(self.affine, points)
        return mapped + self.displacement(mapped)

    def unmap_points(self, points: Array, iterations: int = 15) -> Array:
        """Take template points to FLAIR points: the inverse of `map_points`.

        The B-spline is inverted by fixed-point iteration, z <- y - d(z), for each point until it
        moves by less than 0.01 mm. It converges where the displacement's gradient is below one,
        so not in folds.
        """
        wanted = np.reshape(np.asarray(points, dtype=np.float64), (3, -1))
        mapped, moving = wanted.copy(), np.arange(wanted.shape[1])
        for _ in range(iterations if self.bspline is not None else 0):
            before = mapped[:, moving]
            after = wanted[:, moving] - self.displacement(before)
            mapped[:, moving] = after
            moving = moving[np.abs(after - before).max(axis=0) >= 0.01]
            if not moving.size:
                break
        return _apply(np.linalg.inv(self.affine), mapped).reshape(np.shape(points))


def from_elastix(
    start: Array, stages: Sequence[dict[str, tuple[str, ...]]], threads: int = 1
) -> TemplateTransform:
    """Compose the start and elastix's stages into one transform.

    Parameters
    ----------
    start
        (4, 4) affine from FLAIR to template points, mm, RAS+.
    stages
        elastix transform parameters (LPS+): a rigid (Euler) or affine stage and, optionally, a
        B-spline stage.
    threads
        Of the transform.
    """
    affine = np.asarray(start, dtype=np.float64)
    bspline = None
    for stage in stages:
        values = np.array(stage["TransformParameters"], dtype=np.float64)
        if stage["Transform"][0] in ("AffineTransform", "EulerTransform"):
            matrix = np.eye(4)
            centre = np.array(stage["CenterOfRotationPoint"], dtype=np.float64)
            matrix[:3, :3] = _linear_part(values)
            matrix[:3, 3] = values[-3:] + centre - matrix[:3, :3] @ centre
            affine = RAS_TO_LPS @ matrix @ RAS_TO_LPS @ affine
        else:
            size = [int(v) for v in stage["GridSize"]]
            spacing = np.array(stage["GridSpacing"], dtype=np.float64)
            direction = np.array(stage["GridDirection"], dtype=np.float64).reshape(3, 3).T
            lps = np.eye(4)
            lps[:3, :3] = direction * spacing
            lps[:3, 3] = np.array(stage["GridOrigin"], dtype=np.float64) + lps[:3, :3] @ np.array(
                stage["GridIndex"], dtype=np.float64
            )
            bspline = _bspline(values, size, lps)
    return TemplateTransform(affine, bspline, threads)


def _bspline(values: Array, size: Sequence[int], lps: Array) -> Image:
    """B-spline of ITK's parameters: nodes with x fastest, on a grid in the LPS+ world."""
    nodes = values.reshape(3, *size[::-1]).transpose(0, 3, 2, 1)
    return Image(nodes * LPS_SIGNS, RAS_TO_LPS @ lps)


def _linear_part(values: Array) -> Array:
    """Return the (3, 3) matrix of an affine stage (12 parameters) or a rigid one (6).

    ITK's Euler transform turns about y, then x, then z (``ComputeZYX`` is false).
    """
    if len(values) == 12:
        return values[:9].reshape(3, 3)
    x, y, z = values[:3]
    return Rotation.from_euler("ZXY", [z, x, y]).as_matrix()


def forward_field(
    transform: TemplateTransform, flair: OnGrid, step_mm: float = 2.0
) -> npt.NDArray[np.float32]:
    """Return the template point (mm, RAS+) of every voxel of a FLAIR grid, (3, X, Y, Z).

    The B-spline is evaluated on a lattice of about `step_mm` and interpolated linearly, which
    is within 0.1 mm of evaluating it everywhere and many times quicker.
    """
    return _dense(transform.map_points, flair, step_mm)


def inverse_field(
    transform: TemplateTransform, template: OnGrid, step_mm: float = 4.0
) -> npt.NDArray[np.float32]:
    """Return the FLAIR point (mm, RAS+) of every voxel of a template grid, (3, X, Y, Z)."""
    return _dense(transform.unmap_points, template, step_mm)


def lattice_field(transform: TemplateTransform, flair: OnGrid, step_mm: float = 3.0) -> Image:
    """Return the template points of a coarse lattice over a FLAIR grid, small enough to keep.

    Returns
    -------
    (3, I, J, K) mm, RAS+, float32
        Where each node of the lattice is mapped; it lies in the FLAIR's world. The outermost
        nodes are the centres of the outermost voxels; an axis of one voxel has one node.
        `bagau_bids.spaces.resample` reads the points off at any place between.
    """
    nodes = _lattice_axes(flair, step_mm)
    lattice = np.stack(np.meshgrid(*nodes, indexing="ij"))
    values = transform.map_points(_apply(flair.affine, lattice))
    steps = [axis[1] - axis[0] if len(axis) > 1 else 1.0 for axis in nodes]
    return Image(values.astype(np.float32), flair.affine @ np.diag([*steps, 1.0]))


def sample(
    image: Image, points: npt.NDArray[np.floating[Any]], order: int = 1
) -> npt.NDArray[np.float32]:
    """Sample an image (X, Y, Z) at world points (3, ...), mm, RAS+; zero outside of it.

    `order` 1 is linear; 0 takes the nearest voxel, for labels.
    """
    index = _apply(np.linalg.inv(image.affine), points)
    return ndimage.map_coordinates(
        image.data.astype(np.float32), index, order=order, mode="constant", output=np.float32
    )


def jacobian_determinant(points: Image) -> npt.NDArray[np.float64]:
    """Return the Jacobian determinant of a mapping, (X, Y, Z).

    It is the volume in the target of a unit volume of the grid, not positive where the map folds.

    Parameters
    ----------
    points
        (3, X, Y, Z): where each voxel is mapped, mm, RAS+.
    """
    a, b, c = (np.stack(np.gradient(p.astype(np.float64))) for p in points.data)
    volume = np.linalg.det(points.affine[:3, :3])
    return np.einsum("i...,i...->...", a, np.cross(b, c, axis=0)) / volume


def _apply(affine: Array, points: npt.NDArray[np.floating[Any]]) -> npt.NDArray[Any]:
    """Apply an affine (4, 4) to points (3, ...)."""
    matrix = affine.astype(points.dtype)
    moved = np.tensordot(matrix[:3, :3], points, axes=1)
    return moved + matrix[:3, 3].reshape(3, *(1,) * (points.ndim - 1))


def _dense(mapping: Any, grid: OnGrid, step_mm: float) -> npt.NDArray[np.float32]:
    """Evaluate a point mapping on a coarse lattice of a grid and interpolate it linearly."""
    axes = _lattice_axes(grid, step_mm)
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"))
    values = mapping(_apply(grid.affine, lattice)).astype(np.float32)
    for axis, (nodes, n) in enumerate(zip(axes, grid.shape, strict=True), start=1):
        values = _interpolate_axis(values, nodes, n, axis)
    return values


def _lattice_axes(grid: OnGrid, step_mm: float) -> list[Array]:
    """Return the voxel indices of a lattice's nodes along each axis, from 0 to n - 1."""
    sizes = [
        max(2, int(np.ceil((n - 1) * s / step_mm)) + 1) if n > 1 else 1
        for n, s in zip(grid.shape, voxel_sizes(grid.affine), strict=True)
    ]
    return [np.linspace(0, n - 1, size) for n, size in zip(grid.shape, sizes, strict=True)]


def _interpolate_axis(
    values: npt.NDArray[np.float32], nodes: Array, size: int, axis: int
) -> npt.NDArray[np.float32]:
    """Interpolate linearly along one axis, from `nodes` to 0, 1 ... size - 1."""
    if len(nodes) == size:
        return values
    position = np.interp(np.arange(size), nodes, np.arange(len(nodes)))
    low = np.minimum(position.astype(int), len(nodes) - 2)
    shape = [1] * values.ndim
    shape[axis] = size
    weight = (position - low).reshape(shape).astype(np.float32)
    below, above = np.take(values, low, axis=axis), np.take(values, low + 1, axis=axis)
    return below + weight * (above - below)


def write_itk_forward(transform: TemplateTransform, path: Path) -> None:
    """Write the FLAIR-to-template point transform (resamples the template onto the FLAIR).

    The file (``.h5``) holds an ITK composite transform in LPS+ mm: the affine is applied to a
    point first, then the cubic B-spline.
    """
    parts = [_itk_affine(transform.affine)]
    if transform.bspline is not None:
        parts.append(_itk_bspline(transform.bspline))
    _write_itk(parts, path)


def write_itk_inverse(
    transform: TemplateTransform, template: OnGrid, path: Path, step_mm: float = 4.0
) -> None:
    """Write the template-to-FLAIR point transform (resamples FLAIR images onto the template).

    The file (``.h5``) holds an ITK composite transform in LPS+ mm: a displacement field over
    the template's grid undoes the B-spline first, then the inverse affine is applied.
    """
    parts = [_itk_affine(np.linalg.inv(transform.affine))]
    if transform.bspline is not None:
        last = np.asarray(template.shape) - 1
        sizes = np.ceil(last * voxel_sizes(template.affine) / step_mm).astype(int) + 1
        coarse = template.affine.copy()
        coarse[:3, :3] *= last / (sizes - 1)
        points = _apply(coarse, np.indices(tuple(sizes)).astype(np.float64))
        undone = _apply(transform.affine, transform.unmap_points(points)) - points
        parts.insert(0, _itk_field(Image(undone, coarse)))
    _write_itk(parts, path)


# Asking the itk package for a class loads all of ITK, which takes 9 s; the module that holds the
# class takes 0.5 s.


def _itk_affine(matrix: Array) -> Any:
    from itk.itkAffineTransformPython import itkAffineTransformD3

    lps = RAS_TO_LPS @ matrix @ RAS_TO_LPS
    result = itkAffineTransformD3.New()
    result.SetParameters(_itk_parameters(np.append(lps[:3, :3], lps[:3, 3])))
    return result


def _itk_bspline(coefficients: Image) -> Any:
    from itk.itkBSplineTransformPython import itkBSplineTransformD33

    result = itkBSplineTransformD33.New()
    result.SetFixedParameters(_itk_parameters(_itk_grid(coefficients)))
    flipped = coefficients.data * LPS_SIGNS
    result.SetParameters(_itk_parameters(flipped.transpose(0, 3, 2, 1)))
    return result


def _itk_field(displacement: Image) -> Any:
    from itk.itkDisplacementFieldTransformPython import itkDisplacementFieldTransformD3

    result = itkDisplacementFieldTransformD3.New()
    result.SetFixedParameters(_itk_parameters(_itk_grid(displacement)))
    flipped = displacement.data * LPS_SIGNS
    result.SetParameters(_itk_parameters(flipped.transpose(3, 2, 1, 0)))
    return result


def _itk_grid(vectors: Image) -> Array:
    """Return size, origin, spacing and directions of a grid (3, I, J, K), as ITK lists them."""
    lps = RAS_TO_LPS @ vectors.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = (lps[:3, :3] / spacing).ravel()
    return np.concatenate([vectors.shape[1:], lps[:3, 3], spacing, directions])


def _itk_parameters(values: Array) -> Any:
    """Copy numbers to ITK as one block: setting each takes thirty times as long."""
    from itk.itkArrayPython import itkArrayD
    from itk.itkOptimizerParametersPython import itkOptimizerParametersD
    from itk.itkPyBufferPython import itkPyVnlD

    block = np.ascontiguousarray(values.ravel(), dtype=np.float64)
    return itkOptimizerParametersD(itkArrayD(itkPyVnlD.GetVnlVectorFromArray(block)))


def _write_itk(parts: Sequence[Any], path: Path) -> None:
    """Write parts as one composite transform; the first is applied to a point first."""
    from itk.itkCompositeTransformPython import itkCompositeTransformD3
    from itk.itkHDF5TransformIOPython import itkHDF5TransformIOTemplateD
    from itk.itkTransformFileWriterPython import itkTransformFileWriterTemplateD

    composite = itkCompositeTransformD3.New()
    for part in reversed(parts):  # ITK applies the part that was added last first
        composite.AddTransform(part)
    writer = itkTransformFileWriterTemplateD.New()
    writer.SetTransformIO(itkHDF5TransformIOTemplateD.New())
    writer.SetFileName(str(path))
    writer.SetUseCompression(True)
    writer.SetInput(composite)
    writer.Update()
    forget_times(path)


def _read_itk(path: Path) -> Any:
    """Read the composite transform that a file holds, without loading all of ITK."""
    from itk.itkCompositeTransformPython import itkCompositeTransformD3
    from itk.itkHDF5TransformIOPython import itkHDF5TransformIOTemplateD
    from itk.itkTransformFileReaderPython import itkTransformFileReaderTemplateD

    reader = itkTransformFileReaderTemplateD.New()
    reader.SetTransformIO(itkHDF5TransformIOTemplateD.New())
    reader.SetFileName(str(path))
    reader.Update()
    # The cast holds the transform; what the list holds ends with the reader.
    return itkCompositeTransformD3.cast(reader.GetTransformList()[0])


def _from_itk(parameters: Any) -> npt.NDArray[np.float64]:
    """Copy ITK's numbers as one block: asking for each takes a hundred times as long."""
    from itk.itkPyBufferPython import itkPyVnlD

    return itkPyVnlD.GetArrayFromVnlVector(parameters)


def read_itk_forward(path: Path) -> TemplateTransform:
    """Read a transform that `write_itk_forward` wrote.

    Raises
    ------
    ProcessingError
        When the file holds something else.
    """
    affine, bspline = np.eye(4), None
    composite = _read_itk(path)
    for number in range(composite.GetNumberOfTransforms()):
        part = composite.GetNthTransform(number)
        kind = part.GetNameOfClass()
        fixed = _from_itk(part.GetFixedParameters())
        values = _from_itk(part.GetParameters())
        if kind == "AffineTransform":
            lps = np.eye(4)
            lps[:3, :3] = values[:9].reshape(3, 3)
            lps[:3, 3] = values[9:] + fixed[:3] - lps[:3, :3] @ fixed[:3]
            affine = RAS_TO_LPS @ lps @ RAS_TO_LPS
        elif kind == "BSplineTransform":
            size = fixed[:3].astype(int).tolist()
            lps = np.eye(4)
            lps[:3, :3] = fixed[9:].reshape(3, 3) * fixed[6:9]
            lps[:3, 3] = fixed[3:6]
            bspline = _bspline(values, size, lps)
        else:
            raise ProcessingError(
                f"{path}: found a transform of the kind {kind}; expected an affine and a "
                "B-spline as written by this program; delete the file to have it made again"
            )
    return TemplateTransform(affine, bspline)

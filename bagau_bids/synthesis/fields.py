"""Random numbers, smooth random fields and blurring on 3-D tensors."""

import math

import torch

Range = tuple[float, float]


class Draw:
    """A seeded source of random numbers: parameters on the CPU, noise on the device.

    Parameters
    ----------
    seed : int
        Two sources with one seed and one device give the same numbers.
    device : str or torch.device
        Where fields and noise are needed.
    """

    def __init__(self, seed: int, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._cpu = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(device=self.device).manual_seed(seed)

    def uniform(self, limits: Range) -> float:
        """One number between the limits."""
        low, high = limits
        return low + (high - low) * float(torch.rand((), generator=self._cpu))

    def normal(self, std: float = 1.0) -> float:
        """One number from a normal distribution of mean 0."""
        return std * float(torch.randn((), generator=self._cpu))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return float(torch.rand((), generator=self._cpu)) < probability

    def integer(self, low: int, high: int) -> int:
        """One integer, low <= n < high."""
        return int(torch.randint(low, high, (), generator=self._cpu))

    def choice(self, weights: tuple[float, ...]) -> int:
        """Index drawn with these weights."""
        drawn = torch.multinomial(torch.tensor(weights), 1, generator=self._cpu)
        return int(drawn)

    def uniforms(self, count: int) -> torch.Tensor:
        """(count,) numbers in [0, 1), on the CPU."""
        return torch.rand(count, generator=self._cpu)

    def normals(self, count: int) -> torch.Tensor:
        """(count,) normal numbers of variance 1, on the CPU."""
        return torch.randn(count, generator=self._cpu)

    def noise(self, shape: tuple[int, ...]) -> torch.Tensor:
        """White normal noise of variance 1, on the device."""
        return torch.randn(shape, generator=self._noise, device=self.device)

    def smooth_field(
        self, shape: tuple[int, ...], spacing_mm: tuple[float, ...], scale_mm: float
    ) -> torch.Tensor:
        """Smooth random field with features of about ``scale_mm``, about variance 1.

        A cubic B-spline with random coefficients, evaluated axis by axis as three matrix
        products, so that it costs little at any scale.

        Parameters
        ----------
        shape : tuple of int
            (X, Y, Z) of the field.
        spacing_mm : tuple of float
            Voxel size along each axis.
        scale_mm : float
            Distance of the spline's knots.

        Returns
        -------
        (X, Y, Z) float32 tensor on the device.
        """
        bases = [
            _bspline_basis(size, spacing / scale_mm)
            for size, spacing in zip(shape, spacing_mm, strict=True)
        ]
        knots = torch.randn(tuple(b.shape[1] for b in bases), generator=self._cpu) * _UNIT_GAIN
        field = knots.to(self.device)
        bases = [basis.to(self.device) for basis in bases]
        field = torch.einsum("xa,abc->xbc", bases[0], field)
        field = torch.einsum("yb,xbc->xyc", bases[1], field)
        return field @ bases[2].T


# A cubic B-spline averages coefficients: the mean over a period of the sum of its squared
# weights is 151/315 an axis; this gain brings the field's variance back to 1.
_UNIT_GAIN = (315 / 151) ** 1.5


def _bspline_basis(size: int, step: float) -> torch.Tensor:
    """(size, knots) weights of uniform cubic B-splines at positions 0, step, 2 step..."""
    position = torch.arange(size, dtype=torch.float32) * step
    knots = int(math.floor((size - 1) * step)) + 4
    distance = (position[:, None] - (torch.arange(knots) - 1.0)[None]).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def blur(volume: torch.Tensor, sigma: tuple[float, ...]) -> torch.Tensor:
    """Gaussian blur of a (X, Y, Z) tensor, sigma in voxels along each axis, edges repeated."""
    for axis, width in enumerate(sigma):
        if width < 0.15 or volume.shape[axis] < 2:
            continue
        radius = min(max(1, math.ceil(2.5 * width)), volume.shape[axis] - 1)
        weights = torch.exp(-0.5 * (torch.arange(radius + 1) / width) ** 2)
        weights = weights / (weights[0] + 2 * weights[1:].sum())
        volume = _convolve_axis(volume, weights.tolist(), axis)
    return volume


def _convolve_axis(volume: torch.Tensor, weights: list[float], axis: int) -> torch.Tensor:
    """Symmetric convolution along one axis by adding shifted copies."""
    size, radius = volume.shape[axis], len(weights) - 1
    first = volume.narrow(axis, 0, 1)
    last = volume.narrow(axis, size - 1, 1)
    repeat = [1, 1, 1]
    repeat[axis] = radius
    padded = torch.cat([first.repeat(repeat), volume, last.repeat(repeat)], dim=axis)
    result = volume * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        result.add_(padded.narrow(axis, radius - offset, size), alpha=weight)
        result.add_(padded.narrow(axis, radius + offset, size), alpha=weight)
    return result


def wide_blur(volume: torch.Tensor, sigma: tuple[float, ...]) -> torch.Tensor:
    """Gaussian blur by at least two voxels, computed at half resolution for speed."""
    shape = volume.shape
    half = torch.nn.functional.avg_pool3d(volume[None, None], 2, ceil_mode=True)[0, 0]
    half = blur(half, tuple(width / 2 for width in sigma))
    full = torch.nn.functional.interpolate(half[None, None], size=shape, mode="trilinear")
    return full[0, 0]

"""From a preprocessed scan to the probability of white matter hyperintensity in each voxel."""

import copy
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bagau_bids.errors import ProcessingError, UsageError
from bagau_bids.network.cards import INFARCT, WMH
from bagau_bids.network.slices import (
    BoolArray,
    FloatArray,
    NetworkInput,
    from_slices,
)
from bagau_bids.network.weights import LoadedNetwork, load_weights

# What oneDNN can be limited to, by the variable ONEDNN_MAX_CPU_ISA, that computes no bfloat16.
WITHOUT_BFLOAT16 = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
)


@dataclass(frozen=True)
class Segmentation:
    """What the network says about one scan, and how it was run.

    Parameters
    ----------
    probability : (X, Y, Z) float32 array
        Of white matter hyperintensity: in [0, 1], on the FLAIR's grid; 0 outside the brain mask.
    device : str
        Where the last batch ran: ``cpu`` or ``cuda:N``.
    batch_size : int
        Slices in each batch at the end, after any halving for lack of memory.
    precision : str
        ``float32`` or ``bfloat16``.
    notes : tuple of str
        What was out of the ordinary.
    infarct_probability : (X, Y, Z) float32 array or None
        Of infarct, likewise; each is a yes or no of its own, and
        :func:`bagau_bids.measures.infarcts.tell_apart` decides where both are likely. None where
        no network tells infarcts.
    views : tuple of (X, Y, Z) float32 arrays
        Probability of white matter hyperintensity by the FLAIR alone and by its mirror image
        alone; empty where the networks did not see the latter.
    """

    probability: FloatArray
    device: str
    batch_size: int
    precision: str
    notes: tuple[str, ...] = ()
    infarct_probability: FloatArray | None = None
    views: tuple[FloatArray, ...] = ()


def choose_device(name: str) -> torch.device:
    """Device that a user asked for.

    Parameters
    ----------
    name : str
        ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    UsageError
        If the name is none of these, or there is no such GPU.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    prefix, _, number = name.partition(":")
    if prefix != "cuda" or (number and not number.isdecimal()) or name.endswith(":"):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(number or 0)
    if index >= found:
        raise UsageError(
            f"--device {name}: PyTorch {torch.__version__} sees {found} CUDA GPU(s); use "
            "--device cpu, or check the driver, CUDA_VISIBLE_DEVICES and that PyTorch is a "
            "CUDA build"
        )
    return torch.device("cuda", index)


def segment(
    networks: Sequence[LoadedNetwork],
    inputs: NetworkInput,
    brain_mask: BoolArray,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 8,
    tta: bool = False,
) -> Segmentation:
    """Probability of white matter hyperintensity on the FLAIR's own grid.

    Parameters
    ----------
    networks : sequence of LoadedNetwork
        In evaluation mode; the mean of their probabilities is taken, that of infarct over those
        that tell infarcts.
    inputs : NetworkInput
    brain_mask : (X, Y, Z) bool array
        The mask that `inputs` was made with, or what of it is to be judged: elsewhere the
        probabilities are 0.
    device : str or torch.device
        As :func:`choose_device` understands it.
    batch_size : int
        Slices run at once; halved when the GPU's memory does not suffice, and in the end the
        CPU takes over; both are noted in the result.
    tta : bool
        Average with what the networks say of the mirrored scan.

    Returns
    -------
    Segmentation

    Raises
    ------
    ProcessingError
        If the scan was prepared without what a network asks for.
    """
    if not networks:
        raise ValueError("no network given")
    chosen = choose_device(device) if isinstance(device, str) else device
    runner = _Runner(chosen, batch_size)
    other_side = mirror(inputs) if tta else None
    found: dict[str, list[FloatArray]] = {WMH: [], INFARCT: []}
    alone: tuple[list[FloatArray], list[FloatArray]] = ([], [])
    for given in networks:
        network = replace(given, model=for_inference(given.model))
        outputs = runner.probability(network, inputs)
        if other_side is not None:
            mirrored = runner.probability(network, other_side)[:, :, ::-1]
            for view, one in zip(alone, (outputs, mirrored), strict=True):
                view.append(_on_scan(one, network, inputs)[WMH])
            outputs = (outputs + mirrored) * np.float32(0.5)
        for name, probability in _on_scan(outputs, network, inputs).items():
            found[name].append(probability)
    judged = np.asarray(brain_mask, dtype=bool)
    infarct = _mean_within(found[INFARCT], judged) if found[INFARCT] else None
    return Segmentation(
        probability=_mean_within(found[WMH], judged),
        infarct_probability=infarct,
        views=tuple(_mean_within(view, judged) for view in alone if view),
        device=str(runner.device),
        batch_size=runner.batch_size,
        precision=str(working_precision(runner.device)).removeprefix("torch."),
        notes=(*inputs.notes, *runner.notes),
    )


def _on_scan(
    outputs: FloatArray, network: LoadedNetwork, inputs: NetworkInput
) -> dict[str, FloatArray]:
    """Probability of each output of a network on the scan's grid, calibrated."""
    return {
        name: calibrated(from_slices(slices, inputs.plane), network.operating_points[name])
        for name, slices in zip(network.outputs, outputs, strict=True)
    }


def _mean_within(probabilities: Sequence[FloatArray], judged: BoolArray) -> FloatArray:
    """Mean of probabilities, (X, Y, Z), 0 elsewhere."""
    mean: FloatArray = np.mean(probabilities, axis=0).astype(np.float32)
    mean[~judged] = 0.0
    return np.clip(mean, 0.0, 1.0)


def calibrated(probability: FloatArray, threshold: float) -> FloatArray:
    """Shift the odds of probabilities so that `threshold` becomes 0.5; 0 and 1 stay.

    It is done on the scan's own grid: there a value between 0 and 1 is mostly a voxel on the edge
    of a lesion, and the threshold decides how far the edge lies out.

    Parameters
    ----------
    probability : (X, Y, Z) float array
    threshold : float
        Between 0 and 1, both excluded.

    Returns
    -------
    calibrated : (X, Y, Z) float32 array
        In the same order of voxels; `probability` itself where `threshold` is 0.5.
    """
    if threshold == 0.5:
        return probability
    inside = np.clip(probability, 0.0, 1.0)
    for_lesion = inside * (1 - threshold)
    shifted = for_lesion / (for_lesion + (1 - inside) * threshold)
    return shifted.astype(np.float32)


def mirror(inputs: NetworkInput) -> NetworkInput:
    """Network input with left and right swapped about the middle of the plane."""
    return replace(
        inputs,
        channels={name: slices[:, ::-1].copy() for name, slices in inputs.channels.items()},
        brain=inputs.brain[:, ::-1].copy(),
    )


def working_precision(device: torch.device) -> torch.dtype:
    """Floating-point type of the convolutions.

    bfloat16 on CPUs that compute with it (AVX512-BF16 or AMX), up to four times as fast there
    as single precision; single precision elsewhere, where PyTorch is too old to say, and where
    oneDNN, which computes the convolutions, is missing or told not to use these instructions:
    without them bfloat16 is several times slower than single precision. Of a trained
    quarter-width network the probabilities of both differ by 0.02 at most, and the masks have a
    Dice of 0.999 with each other.
    """
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return torch.float32
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    allowed = torch.backends.mkldnn.is_available() and not _instructions_withheld()
    return torch.bfloat16 if fast and allowed else torch.float32


def _instructions_withheld() -> bool:
    """Tell whether the environment keeps oneDNN from using bfloat16 instructions.

    oneDNN reads the first of the two variables that is set, in upper or lower case, and ignores
    names that it does not know.
    """
    names = (os.environ.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"))
    return next((name for name in names if name), "").upper() in WITHOUT_BFLOAT16


def load_for_inference(path: Path) -> LoadedNetwork:
    """Read a network, made ready by :func:`for_inference`, and keep it for the next scan.

    Parameters
    ----------
    path : Path
        As for :func:`bagau_bids.network.weights.load_weights`, whose errors are raised. A file or
        card that has changed since is read again.
    """
    return _kept(path, _stamp(path), _stamp(path.with_suffix(".json")))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None  # what is wrong with it is told where it is read
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=2)
def _kept(path: Path, *stamps: tuple[int, int] | None) -> LoadedNetwork:
    network = load_weights(path)
    return replace(network, model=for_inference(network.model))


def for_inference(model: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode that computes the same, and faster.

    Batch norms are folded into the convolutions before them, and kernels are laid out as the
    slices are, which saves oneDNN turning the slices round at every convolution. A network without
    batch norms is returned itself.
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        return model
    quick = copy.deepcopy(model)
    for block in quick.modules():
        if isinstance(block, nn.Sequential):
            _fold(block)
    for parameter in quick.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return quick


def _fold(block: nn.Sequential) -> None:
    for index, (first, second) in enumerate(itertools.pairwise(list(block))):
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            block[index] = fuse_conv_bn_eval(first, second)
            block[index + 1] = nn.Identity()


class _Runner:
    """Runs slices through networks, remembering what batch size and device still work."""

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self.device = device
        self.batch_size = batch_size
        self.notes: list[str] = []

    def probability(self, network: LoadedNetwork, inputs: NetworkInput) -> FloatArray:
        """Probability slices of each output, (O, Z, size, size), 0 in those without brain."""
        result = np.zeros((len(network.outputs), *inputs.brain.shape), np.float32)
        remaining = np.flatnonzero(inputs.brain.any(axis=(1, 2)))
        missing = [name for name in network.inputs if name not in inputs.channels]
        if missing:
            raise ProcessingError(
                f"the network asks for {' and '.join(missing)} and the scan was prepared without "
                "it; expected all inputs that the card of the weights names"
            )
        given = {name: inputs.channels[name] for name in network.inputs}
        model = network.model.to(self.device)
        while remaining.size:
            batch = remaining[: self.batch_size]
            try:
                slices = {name: array[batch] for name, array in given.items()}
                result[:, batch] = self._forward(model, slices)
            except torch.cuda.OutOfMemoryError:
                self._make_room()
                model = model.to(self.device)
                continue
            remaining = remaining[batch.size :]
        return result

    def _forward(self, model: nn.Module, given: Mapping[str, FloatArray]) -> FloatArray:
        def tensor(slices: FloatArray) -> Tensor:
            batch = torch.from_numpy(slices)[:, None].to(self.device)  # (N, 1, H, W)
            return batch.contiguous(memory_format=torch.channels_last)

        precision = working_precision(self.device)
        reduced = precision != torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, precision, enabled=reduced):
            logits = model(**{name: tensor(slices) for name, slices in given.items()})
        # (N, O, H, W) -> (O, N, H, W)
        return torch.sigmoid(logits.float()).cpu().numpy().swapaxes(0, 1)

    def _make_room(self) -> None:
        torch.cuda.empty_cache()
        if self.batch_size > 1:
            self.batch_size //= 2
            self.notes.append(
                f"{self.device} ran out of memory: went on with {self.batch_size} slices at once"
            )
        else:
            self.notes.append(f"{self.device} ran out of memory with one slice: the CPU took over")
            self.device = torch.device("cpu")

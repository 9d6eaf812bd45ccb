"""Weights on disk: safetensors beside a JSON card that says what they are.

A file of weights ``<name>.safetensors`` is only ever used together with its card
``<name>.json``, which names the architecture, its hyper-parameters and the SHA-256 of the
file. Pickled files are never opened: unpickling runs whatever code they hold.
"""

import hashlib
import importlib
import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import nn

from bagau_bids.errors import MissingResourceError
from bagau_bids.files import write_bytes, write_json

# name in a card -> module, network class, dataclass of its hyper-parameters
ARCHITECTURES = {
    "bagau_net": ("bagau_bids.network.bagau_net", "BagauNet", "BagauNetConfig"),
    "unet": ("bagau_bids.network.unet", "UNet", "UNetConfig"),
    "brain_unet": ("bagau_bids.network.brain_unet", "BrainUNet", "BrainUNetConfig"),
}
DEFAULT_INPUTS = ("flair", "atlas")  # of a network whose card names none: BAGAU-Net
WMH, INFARCT = "wmh", "infarct"  # what a channel of a network may be about
DEFAULT_OUTPUTS = (WMH,)  # of a network whose configuration names none
# Where a card keeps the operating point of each output, below ``calibration``.
CALIBRATED_POINTS = {WMH: "threshold", INFARCT: "infarct_threshold"}
UNCALIBRATED = 0.5
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".tar")
WEIGHTS_FOLDER = "weights"


def build_network(architecture: str, config: dict[str, Any]) -> nn.Module:
    """Make an untrained network.

    Parameters
    ----------
    architecture : str
        A key of :data:`ARCHITECTURES`.
    config : dict
        Fields of that network's configuration class, as read from JSON.

    Raises
    ------
    ValueError
        If the architecture or one of the fields is unknown.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture '{architecture}', expected one of {', '.join(ARCHITECTURES)}"
        )
    module_name, network_name, config_name = ARCHITECTURES[architecture]
    module = importlib.import_module(module_name)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    try:
        return getattr(module, network_name)(getattr(module, config_name)(**fields))
    except TypeError as error:
        raise ValueError(f"{architecture} cannot be built from {config}: {error}") from error


def architecture_of(model: nn.Module) -> str:
    """Name of a network in :data:`ARCHITECTURES`."""
    for name, (_, network_name, _) in ARCHITECTURES.items():
        if type(model).__name__ == network_name:
            return name
    raise ValueError(f"{type(model).__name__} is none of {', '.join(ARCHITECTURES)}")


def inputs_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the tensors that a network is given: some of ``flair``, ``atlas``, ``t1``."""
    return tuple(getattr(model, "inputs", DEFAULT_INPUTS))


def inputs_of_card(card: dict[str, Any]) -> tuple[str, ...]:
    """Return what :func:`inputs_of` says of the network that a card describes."""
    return tuple(card.get("inputs", DEFAULT_INPUTS))


def outputs_of(model: nn.Module) -> tuple[str, ...]:
    """Names of a network's channels, in order: ``wmh``, and ``infarct`` where it tells those."""
    return tuple(getattr(getattr(model, "config", None), "outputs", DEFAULT_OUTPUTS))


def outputs_of_card(card: dict[str, Any]) -> tuple[str, ...]:
    """Return what :func:`outputs_of` says of the network that a card describes."""
    return tuple(card["config"].get("outputs", DEFAULT_OUTPUTS))


def operating_point(model: nn.Module, output: str = WMH) -> float:
    """Return the probability of an output that its calibration makes 0.5; 0.5 without one."""
    return float(getattr(model, "operating_points", {}).get(output, UNCALIBRATED))


def set_operating_point(model: nn.Module, threshold: float, output: str = WMH) -> nn.Module:
    """Have inference shift the probabilities of an output so that `threshold` becomes 0.5."""
    changed: Any = model
    changed.operating_points = {**getattr(model, "operating_points", {}), output: threshold}
    return model


def save_weights(path: Path, model: nn.Module, card: dict[str, Any]) -> None:
    """Write a network's weights and their card, each by an atomic rename.

    Kernels are stored in half precision, biases and batch-norm statistics in single.

    Parameters
    ----------
    path : Path
        ``<name>.safetensors``; the card goes to ``<name>.json`` beside it.
    model : torch.nn.Module
        A network of :data:`ARCHITECTURES`, with its configuration as ``model.config``.
    card : dict
        What else the card says (preprocessing, training data, licence, figures ...);
        architecture, configuration, parameter count and SHA-256 are filled in here.

    Raises
    ------
    ValueError
        If a weight is not finite in half precision, or `path` has another suffix.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected a name ending in .safetensors")
    tensors = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.detach().to("cpu").contiguous()
        if stored.ndim > 1:
            stored = stored.to(torch.float16)
        if not torch.isfinite(stored).all():
            raise ValueError(f"{name} is not finite in half precision: training diverged")
        tensors[name] = stored.contiguous()
    content = safetensors_torch.save(tensors)
    config: Any = model.config
    facts = {
        "architecture": architecture_of(model),
        "config": asdict(config),
        **({"inputs": list(inputs_of(model))} if hasattr(model, "inputs") else {}),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_bytes(path, content)
    write_json(path.with_suffix(".json"), {**card, **facts})


def load_weights(
    path: Path, expected_sha256: str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Read a network with its weights, ready for inference.

    Parameters
    ----------
    path : Path
        ``<name>.safetensors``, with its card ``<name>.json`` beside it.
    expected_sha256 : str, optional
        Digest the file must have; by default the one in its card.

    Returns
    -------
    model : torch.nn.Module
        Single precision, on the CPU, in evaluation mode.
    card : dict

    Raises
    ------
    MissingResourceError
        If the file or its card is missing, pickled, damaged, or does not fit.
    """
    if not path.is_file():
        raise MissingResourceError(f"{path}: no such weights file; check --weights or --model")
    if path.suffix != ".safetensors":
        kind = "a pickled" if path.suffix in PICKLE_SUFFIXES else f"a '{path.suffix}'"
        raise MissingResourceError(
            f"{path}: {kind} weights file is not opened, because reading one may run code it "
            "holds; expected <name>.safetensors with its card <name>.json beside it, as "
            "'bagau train' writes them"
        )
    card = read_card(path)
    content = path.read_bytes()
    try:
        tensors = safetensors_torch.load(content)
    except SafetensorError as error:
        raise MissingResourceError(
            f"{path}: truncated or not a safetensors file ({len(content)} bytes: {error}); "
            "fetch or copy it again"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    wanted = expected_sha256 or card.get("sha256")
    if digest != wanted:
        raise MissingResourceError(
            f"{path}: its SHA-256 is {digest}, expected {wanted}; the file was changed or "
            "belongs to another card, fetch or copy both again"
        )
    return _network_from(path, card, tensors), card


def read_card(path: Path) -> dict[str, Any]:
    """Read the card of a weights file.

    Parameters
    ----------
    path : Path
        ``<name>.safetensors``; the card is ``<name>.json`` beside it.

    Raises
    ------
    MissingResourceError
        If there is no card, or it is not a JSON object naming an architecture.
    """
    card_path = path.with_suffix(".json")
    if not card_path.is_file():
        raise MissingResourceError(
            f"{card_path}: the card of {path.name} is missing; it names the architecture and "
            "the checksum, copy it beside the weights"
        )
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MissingResourceError(
            f"{card_path}: not a JSON file ({error}); copy the card again"
        ) from error
    if not isinstance(card, dict) or not {"architecture", "config", "sha256"} <= card.keys():
        raise MissingResourceError(
            f"{card_path}: not a card of weights; expected 'architecture', 'config' and "
            "'sha256' in a JSON object, as 'bagau train' writes them"
        )
    return card


def find_weights(name: str) -> Path:
    """Path of weights that ship with the package.

    Parameters
    ----------
    name : {'small', 'full', 'brain'}

    Raises
    ------
    MissingResourceError
        If they are not there.
    """
    path = Path(str(resources.files("bagau_bids.data"))) / WEIGHTS_FOLDER / f"{name}.safetensors"
    if path.is_file():
        return path
    raise MissingResourceError(
        f"{path}: the weights '{name}' should ship with the package and are missing; "
        "install bagau-bids again, or give '--weights PATH'"
    )


def _network_from(path: Path, card: dict[str, Any], tensors: dict[str, torch.Tensor]) -> nn.Module:
    try:
        model = build_network(card["architecture"], card["config"])
    except ValueError as error:
        raise MissingResourceError(
            f"{path.with_suffix('.json')}: {error}; these weights need another version of "
            "bagau-bids"
        ) from error
    outputs = outputs_of(model)
    if WMH not in outputs or not CALIBRATED_POINTS.keys() >= set(outputs):
        raise MissingResourceError(
            f"{path.with_suffix('.json')}: outputs {', '.join(outputs) or 'none'}; expected "
            f"{WMH}, or {WMH} and {INFARCT}; these weights need another version of bagau-bids"
        )
    wanted = model.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += sorted(
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted.keys() & tensors.keys()
        if tensors[k].shape != wanted[k].shape
    )
    if wrong:
        raise MissingResourceError(
            f"{path}: {len(wrong)} tensors do not fit {card['architecture']} as its card "
            f"describes it (first: {'; '.join(wrong[:3])}); the card belongs to other weights"
        )
    model.load_state_dict({k: v.to(wanted[k].dtype) for k, v in tensors.items()})
    for output in outputs_of(model):
        set_operating_point(model, _calibrated_point(path, card, output), output)
    return model.eval()


def _calibrated_point(path: Path, card: dict[str, Any], output: str) -> float:
    point = float(card.get("calibration", {}).get(CALIBRATED_POINTS[output], UNCALIBRATED))
    what = "" if output == WMH else f" for {output}"
    if not 0 < point < 1:
        raise MissingResourceError(
            f"{path.with_suffix('.json')}: calibrated{what} to a threshold of {point:g}, expected "
            "one between 0 and 1; copy the card again, or calibrate with 'bagau calibrate'"
        )
    return point

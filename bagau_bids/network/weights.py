"""Weights on disk: safetensors beside a JSON card that says what they are.

A file of weights ``<name>.safetensors`` is only ever used together with its card
``<name>.json``, which names the architecture, its hyper-parameters and the SHA-256 of the
file. Pickled files are never opened: unpickling runs whatever code they hold.
"""

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from safetensors import torch as safetensors_torch
from torch import nn

from bagau_bids.errors import MissingResourceError
from bagau_bids.files import write_bytes, write_json
from bagau_bids.network.cards import (
    INFARCT,
    WMH,
    Calibration,
    Card,
    read_card,
    read_weights,
    require_weights,
)

# name in a card -> module, network class, dataclass of its hyper-parameters
ARCHITECTURES = {
    "bagau_net": ("bagau_bids.network.bagau_net", "BagauNet", "BagauNetConfig"),
    "unet": ("bagau_bids.network.unet", "UNet", "UNetConfig"),
    "brain_unet": ("bagau_bids.network.brain_unet", "BrainUNet", "BrainUNetConfig"),
}


@dataclass(frozen=True)
class LoadedNetwork:
    """A network, and what its card says of it.

    Parameters
    ----------
    model : torch.nn.Module
        One of the lesions takes the card's inputs by name, each (N, 1, H, W), and returns logits,
        (N, outputs, H, W).
    card : Card
    """

    model: nn.Module
    card: Card

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors it is given: some of ``flair``, ``atlas``, ``t1``."""
        return self.card.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """What its channels are about, in order: ``wmh``, and ``infarct`` where it tells those."""
        return self.card.outputs

    @property
    def operating_points(self) -> dict[str, float]:
        """Probability of each output that inference moves to 0.5."""
        calibration = self.card.calibration
        points = {WMH: calibration.threshold, INFARCT: calibration.infarct_threshold}
        return {output: points[output] for output in self.outputs}

    def calibrated(self, calibration: Calibration) -> "LoadedNetwork":
        """Return the same network with other operating points."""
        return replace(self, card=structs.replace(self.card, calibration=calibration))


def in_training(model: nn.Module) -> LoadedNetwork:
    """Take a BAGAU-Net or U-Net that has no card yet to inference; it is not calibrated."""
    network: Any = model
    card = Card(
        architecture=architecture_of(model),
        config={**asdict(network.config), "outputs": network.outputs},
        sha256="",
        inputs=network.inputs,
    )
    return LoadedNetwork(model, card)


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


def save_weights(path: Path, model: nn.Module, card: Mapping[str, Any]) -> None:
    """Write a network's weights and their card, each by an atomic rename.

    Kernels are stored in half precision, biases and batch-norm statistics in single.

    Parameters
    ----------
    path : Path
        ``<name>.safetensors``; the card goes to ``<name>.json`` beside it.
    model : torch.nn.Module
        A network of :data:`ARCHITECTURES`, with its configuration as ``model.config``.
    card : mapping
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
    network: Any = model
    facts = {
        "architecture": architecture_of(model),
        "config": asdict(network.config),
        **({"inputs": list(network.inputs)} if hasattr(model, "inputs") else {}),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_bytes(path, content)
    write_json(path.with_suffix(".json"), {**card, **facts})


def load_weights(path: Path, card: Card | None = None) -> LoadedNetwork:
    """Read a network with its weights, ready for inference.

    Parameters
    ----------
    path : Path
        ``<name>.safetensors``, with its card ``<name>.json`` beside it.
    card : Card, optional
        That card, where it was read before.

    Returns
    -------
    LoadedNetwork
        Single precision, on the CPU, in evaluation mode.

    Raises
    ------
    MissingResourceError
        If the file or its card is missing, pickled, damaged, or does not fit.
    """
    require_weights(path)
    card = card or read_card(path)
    tensors = safetensors_torch.load(read_weights(path, card))
    return LoadedNetwork(_network_from(path, card, tensors), card)


def _network_from(path: Path, card: Card, tensors: dict[str, torch.Tensor]) -> nn.Module:
    try:
        model = build_network(card.architecture, card.config)
    except ValueError as error:
        raise MissingResourceError(
            f"{path.with_suffix('.json')}: {error}; these weights need another version of "
            "bagau-bids"
        ) from error
    wanted = model.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += sorted(
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted.keys() & tensors.keys()
        if tensors[k].shape != wanted[k].shape
    )
    if wrong:
        raise MissingResourceError(
            f"{path}: {len(wrong)} tensors do not fit {card.architecture} as its card "
            f"describes it (first: {'; '.join(wrong[:3])}); the card belongs to other weights"
        )
    model.load_state_dict({k: v.to(wanted[k].dtype) for k, v in tensors.items()})
    return model.eval()

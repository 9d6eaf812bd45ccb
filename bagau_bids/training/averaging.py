"""One network from the checkpoints of a training: the mean of their weights.

Single steps of a wide network sway between finding too much and too little on scanners that it
was not trained on; the mean of checkpoints of one training lies where they agree (Izmailov et
al. 2018, arXiv:1803.05407; Wortsman et al. 2022, arXiv:2203.05482).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bagau_bids.errors import UsageError
from bagau_bids.network.weights import load_weights
from bagau_bids.training.calibration import note_lost_calibration


def average_weights(paths: Sequence[Path]) -> tuple[nn.Module, dict[str, Any]]:
    """Average weights of one architecture, parameter by parameter, each file counting the same.

    Batch-norm statistics are averaged too. Files of different trainings may be given, but only
    those that started from common weights have a mean that is worth something. Calibrations are
    not averaged: the log says which are lost.

    Parameters
    ----------
    paths : sequence of Path
        ``.safetensors`` files with their cards.

    Returns
    -------
    model : torch.nn.Module
        In evaluation mode.
    card : dict
        That of the first file, with ``averaged_of``: the SHA-256 of each file.

    Raises
    ------
    UsageError
        If the networks differ in architecture, width, inputs or outputs.
    """
    networks = [load_weights(path) for path in paths]
    first, model = networks[0].card, networks[0].model
    for path, network in zip(paths, networks, strict=True):
        # Cards of older versions say less; what is built from them tells the kind.
        if (network.card.architecture, network.model.config) != (first.architecture, model.config):
            raise UsageError(
                f"{path}: {network.card.architecture} with {network.card.config}; expected the "
                f"same as {paths[0]}, {first.architecture} with {first.config}: average "
                "checkpoints of one training"
            )
        note_lost_calibration(path, network)
    states = [network.model.state_dict() for network in networks]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in states[0].items()
    }
    model.load_state_dict(mean)
    kept = {name: value for name, value in first.content.items() if name != "calibration"}
    averaged_of = [network.card.sha256 for network in networks]
    return model, {**kept, "averaged_of": averaged_of, "validation": []}

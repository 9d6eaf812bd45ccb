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
from bagau_bids.network.weights import UNCALIBRATED, load_weights, set_operating_point
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
    (model, card), *others = [load_weights(path) for path in paths]
    for path, (member, other) in zip(paths[1:], others, strict=True):
        # Cards of older versions say less; what is built from them tells the kind.
        if (other["architecture"], member.config) != (card["architecture"], model.config):
            raise UsageError(
                f"{path}: {other['architecture']} with {other['config']}; expected the same as "
                f"{paths[0]}, {card['architecture']} with {card['config']}: average checkpoints "
                "of one training"
            )
    states = [model.state_dict(), *(other.state_dict() for other, _ in others)]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        for name, value in states[0].items()
    }
    model.load_state_dict(mean)
    for path, (member, _) in zip(paths, ((model, card), *others), strict=True):
        note_lost_calibration(path, member)
    set_operating_point(model, UNCALIBRATED)
    card.pop("calibration", None)
    averaged_of = [card["sha256"], *(other["sha256"] for _, other in others)]
    return model, {**card, "averaged_of": averaged_of, "validation": []}

"""``bagau calibrate``: move a network's threshold to where it agrees best with given masks."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bagau_bids import values
from bagau_bids.cli.labelled import (
    LabelledData,
    Registration,
    device_option,
    labelled_scans,
)
from bagau_bids.errors import EXIT_OK, ProcessingError, UsageError
from bagau_bids.options import argument, option, part

if TYPE_CHECKING:
    from bagau_bids.datasets.labelled import TrainingScan
    from bagau_bids.training.calibration import OperatingPoint
    from bagau_bids.training.slices import ScanScore

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the subcommand is told."""

    weights: Path = argument("weights to start from; not changed", metavar="WEIGHTS")
    data: LabelledData = part(LabelledData)
    output: Path = argument(
        "calibrated weights, whose card (.json) is written beside them", metavar="OUT.safetensors"
    )
    participant_labels: tuple[str, ...] = option(
        (),
        "subjects to calibrate on (default: all with a mask)",
        "--participant-label",
        metavar="LABEL",
        type=values.label("sub"),
    )
    cache: Path | None = option(None, "preprocessed scans (default: OUT's folder)", metavar="DIR")
    template: Registration = part(Registration)
    device: str = device_option("the network runs")
    threads: int | None = option(None, "threads on the CPU", **values.at_least(1))


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if options.output.suffix != ".safetensors":
        raise UsageError(f"{options.output}: expected a name ending in .safetensors")

    import torch

    from bagau_bids.network.cards import Calibration
    from bagau_bids.network.inference import choose_device
    from bagau_bids.network.weights import load_weights, save_weights
    from bagau_bids.training.calibration import (
        best_point,
        operating_points,
        without_lesions,
    )
    from bagau_bids.training.slices import validate

    if options.threads:
        torch.set_num_threads(options.threads)
    network = load_weights(options.weights)
    if network.card.architecture == "brain_unet":
        raise UsageError(
            f"{options.weights}: a network of the brain mask; expected one that finds lesions, "
            "BAGAU-Net or the U-Net"
        )
    device = choose_device(options.device)
    scans = _scans(options, network.inputs)
    points = operating_points(network, scans, device)
    bare = without_lesions(scans)
    if bare:
        log.info(
            "volumes are those of %d scans; %s without lesions in the reference, by Dice alone",
            len(scans) - len(bare),
            ", ".join(bare),
        )
    for point in points:
        log.info(
            "threshold %.2f: mean Dice %.3f, volumes wrong by up to %.0f %%",
            point.threshold,
            point.mean_dice,
            100 * point.worst_volume_error,
        )
    threshold = best_point(points).threshold
    scores = validate(network.calibrated(Calibration(threshold)), scans, device)
    save_weights(
        options.output, network.model, _card(network.card.content, threshold, points, scores)
    )
    for score in scores:
        log.info(
            "%s: Dice %.3f, volume %.1f of %.1f ml",
            score.scan,
            score.dice,
            score.result_ml,
            score.reference_ml,
        )
    log.info("%s: 0.5 is where %.2f was", options.output, threshold)
    return EXIT_OK


def _scans(options: Options, inputs: Sequence[str]) -> "list[TrainingScan]":
    from bagau_bids.datasets.labelled import prepare_scans

    labelled = labelled_scans(options.data.pairs)
    if options.participant_labels:
        labelled = [one for one in labelled if one.scan.subject in options.participant_labels]
    if not labelled:
        wanted = ", ".join(options.participant_labels or ["any subject"])
        raise UsageError(
            f"{options.data.bids_dir}: no FLAIR with a mask found for {wanted}; expected at least "
            "one, check --participant-label and --masks"
        )
    cache_dir = options.cache or options.output.parent / "cache"
    cache_dir.mkdir(parents=True, exist_ok=True)
    prepared, _ = prepare_scans(
        labelled,
        options.template.find(cache_dir),
        options.template.registration,
        cache_dir,
        inputs=inputs,
    )
    if not prepared:
        raise ProcessingError(
            "no scan could be preprocessed, expected at least one; see the reasons above"
        )
    return list(prepared.values())


def _card(
    card: dict[str, Any],
    threshold: float,
    points: "list[OperatingPoint]",
    scores: "list[ScanScore]",
) -> dict[str, Any]:
    """Card of the calibrated weights: the old one, with the threshold that inference makes 0.5."""
    calibration = {
        "threshold": threshold,
        "points": [
            {name: round(value, 4) for name, value in asdict(point).items()} for point in points
        ],
        "scans": [score.scan for score in scores],
    }
    return {**card, "calibration": calibration, "validation": [asdict(score) for score in scores]}

"""``bagau calibrate``: move a network's threshold to where it agrees best with given masks."""

import argparse
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bagau_bids import values
from bagau_bids.cli.labelled import (
    add_device_option,
    add_mask_options,
    add_registration_option,
    add_template_options,
    datasets,
    labelled_scans,
    template_of,
)
from bagau_bids.errors import EXIT_OK, ProcessingError, UsageError

if TYPE_CHECKING:
    from bagau_bids.datasets.labelled import TrainingScan
    from bagau_bids.training.calibration import OperatingPoint
    from bagau_bids.training.loop import ScanScore

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.add_argument(
        "weights", metavar="WEIGHTS", type=Path, help="weights to start from; not changed"
    )
    parser.add_argument("bids_dir", metavar="BIDS_DIR", type=Path, help="BIDS data set of FLAIRs")
    parser.add_argument(
        "output",
        metavar="OUT.safetensors",
        type=Path,
        help="calibrated weights, whose card (.json) is written beside them",
    )
    add_mask_options(parser)
    parser.add_argument(
        "--participant-label",
        metavar="LABEL",
        nargs="+",
        type=values.label("sub"),
        help="subjects to calibrate on (default: all with a mask)",
    )
    parser.add_argument(
        "--cache", metavar="DIR", type=Path, help="preprocessed scans (default: OUT's folder)"
    )
    add_template_options(parser)
    add_registration_option(parser)
    add_device_option(parser, "the network runs")
    parser.add_argument(
        "--threads", metavar="N", type=values.whole_number(1), help="threads on the CPU"
    )


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if args.output.suffix != ".safetensors":
        raise UsageError(f"{args.output}: expected a name ending in .safetensors")

    import torch

    from bagau_bids.network.cards import T1, Calibration
    from bagau_bids.network.inference import choose_device
    from bagau_bids.network.weights import load_weights, save_weights
    from bagau_bids.training.calibration import (
        best_point,
        operating_points,
        without_lesions,
    )
    from bagau_bids.training.loop import validate

    if args.threads:
        torch.set_num_threads(args.threads)
    network = load_weights(args.weights)
    if network.card.architecture == "brain_unet":
        raise UsageError(
            f"{args.weights}: a network of the brain mask; expected one that finds lesions, "
            "BAGAU-Net or the U-Net"
        )
    device = choose_device(args.device)
    scans = _scans(args, with_t1=T1 in network.inputs)
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
        args.output, network.model, _card(network.card.content, threshold, points, scores)
    )
    for score in scores:
        log.info(
            "%s: Dice %.3f, volume %.1f of %.1f ml",
            score.scan,
            score.dice,
            score.result_ml,
            score.reference_ml,
        )
    log.info("%s: 0.5 is where %.2f was", args.output, threshold)
    return EXIT_OK


def _scans(args: argparse.Namespace, *, with_t1: bool) -> "list[TrainingScan]":
    from bagau_bids.datasets.labelled import prepare_scans

    labelled = labelled_scans(datasets(args))
    if args.participant_label:
        labelled = [one for one in labelled if one.scan.subject in args.participant_label]
    if not labelled:
        wanted = ", ".join(args.participant_label or ["any subject"])
        raise UsageError(
            f"{args.bids_dir}: no FLAIR with a mask found for {wanted}; expected at least one, "
            "check --participant-label and --masks"
        )
    cache_dir = args.cache or args.output.parent / "cache"
    cache_dir.mkdir(parents=True, exist_ok=True)
    prepared, _ = prepare_scans(
        labelled,
        template_of(args, cache_dir),
        args.registration,
        cache_dir,
        with_t1=with_t1,
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

"""``bagau train-brain-mask``: train the brain-mask network on synthetic heads."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from bagau_bids.cli.labelled import device_option
from bagau_bids.errors import EXIT_OK, UsageError
from bagau_bids.options import argument, option, part
from bagau_bids.training.settings import BrainMaskSettings, LoopSettings


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the subcommand is told."""

    label_maps: Path = argument(
        "folder of whole-head label maps (*.nii.gz, FreeSurfer numbers, 5xx outside the "
        "brain), such as the training_label_maps of SynthSeg",
        metavar="LABEL_MAPS",
    )
    out: Path = argument("folder for the checkpoint, curve and weights", metavar="OUT")
    recipe: BrainMaskSettings = part(BrainMaskSettings)
    held_out: tuple[str, ...] = option(
        (),
        "label maps to validate on and not to train on, names without .nii.gz",
        metavar="NAME",
        nargs="*",
    )
    device: str = device_option("the network is trained")
    threads: int = option(2, "CPU threads (%(default)s)")
    workers: int = option(1, "processes that draw heads (%(default)s)")
    resume: bool = option(False, "go on from OUT's checkpoint")


def run(options: Options) -> int:
    """Train, and return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    paths = sorted(options.label_maps.glob("*.nii.gz"))
    names = {path.name.removesuffix(".nii.gz"): path for path in paths}
    if not paths:
        raise UsageError(
            f"{options.label_maps}: found no *.nii.gz file, expected a folder of whole-head label "
            "maps; give the folder they lie in"
        )
    unknown = sorted(set(options.held_out) - set(names))
    if unknown:
        raise UsageError(
            f"--held-out {' '.join(unknown)}: found no such label map in {options.label_maps}, "
            f"expected some of {' '.join(names)}; correct the names"
        )
    if set(options.held_out) == set(names):
        raise UsageError("--held-out names every label map, expected at least one to train on")

    import torch

    from bagau_bids.synthesis.labels import load_head
    from bagau_bids.training.brain_mask import BrainMaskTrainer
    from bagau_bids.training.checkpoint import CHECKPOINT, refuse_overwriting

    if not options.resume:
        refuse_overwriting(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    trainer = BrainMaskTrainer(
        [load_head(path) for name, path in names.items() if name not in options.held_out],
        [load_head(names[name]) for name in sorted(options.held_out)],
        options.out,
        options.recipe,
        LoopSettings(device=options.device, validate_every=250, workers=options.workers),
    )
    if options.resume and (options.out / CHECKPOINT).is_file():
        trainer.resume()
    trainer.run()
    return EXIT_OK

"""``bagau average``: one network from several checkpoints of a training."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from bagau_bids.errors import EXIT_OK, UsageError
from bagau_bids.options import argument


@dataclass(frozen=True)
class Options:
    """What the subcommand is told."""

    weights: tuple[Path, ...] = argument(
        "weights of one training, as 'bagau train --keep' leaves them", metavar="WEIGHTS"
    )
    output: Path = argument(
        "their mean, whose card (.json) is written beside it", metavar="OUT.safetensors"
    )


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if options.output.suffix != ".safetensors":
        raise UsageError(f"{options.output}: expected a name ending in .safetensors")
    if options.output.exists():
        raise UsageError(
            f"{options.output}: expected a new file, as the last argument is where the mean goes; "
            "name another, or remove it"
        )

    from bagau_bids.network.weights import save_weights
    from bagau_bids.training.averaging import average_weights

    model, card = average_weights(options.weights)
    save_weights(options.output, model, card)
    print(f"{options.output}: the mean of {len(options.weights)} weights files")
    return EXIT_OK

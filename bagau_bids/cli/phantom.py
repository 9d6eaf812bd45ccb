"""``bagau phantom``: write a data set of synthetic FLAIRs, or compare what was measured in one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bagau_bids.errors import EXIT_OK
from bagau_bids.options import argument, option

if TYPE_CHECKING:
    import pandas as pd


PHANTOM_NOTE = """\
Lesions of a phantom are drawn, and networks that learned real ones find about half of them: this
shows that everything runs, not how well. Usual on real scans: Dice 0.71 to 0.76 above 5 ml, 0.2
below (bagau models small); a real one to try: bagau example DIR."""


@dataclass(frozen=True)
class Options:
    """What the subcommand is told."""

    out: Path = argument("folder of the data set, new or empty", metavar="OUT")
    subjects: int = option(2, "participants (default: %(default)s)", metavar="N")
    sessions: int = option(
        1, "scans of each participant, each drawn on its own (default: %(default)s)", metavar="N"
    )
    random_seed: int = option(
        0,
        "start of the random numbers; the same seed gives the same voxels (default: %(default)s)",
        metavar="S",
    )
    compare: Path | None = option(
        None,
        "write nothing: OUT is a phantom that bagau-bids has processed into DERIVATIVES; "
        "print true and measured volumes side by side",
        metavar="DERIVATIVES",
    )


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.datasets.phantom import compare_volumes, make_phantom_dataset

    if options.compare:
        print(_side_by_side(compare_volumes(options.out, options.compare)))
        print(PHANTOM_NOTE)
        return EXIT_OK
    make_phantom_dataset(
        options.out,
        options.subjects,
        options.random_seed,
        sessions=options.sessions,
        progress=lambda line: print(line, flush=True),
    )
    return EXIT_OK


def _side_by_side(table: "pd.DataFrame") -> str:
    """Lay the comparison out in columns."""
    lines = [f"{'scan':<24}{'true ml':>10}{'measured ml':>14}{'Dice':>8}"]
    for scan in table.itertuples():
        lines.append(
            f"{scan.bids_name:<24}{scan.true_ml:>10.2f}{scan.measured_ml:>14.2f}{scan.dice:>8.2f}"
        )
    return "\n".join(lines)

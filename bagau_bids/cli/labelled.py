"""Options and steps of the subcommands that read data sets with lesion masks."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bagau_bids import values
from bagau_bids.config import REGISTRATIONS, TEMPLATES, Processing, Selection
from bagau_bids.errors import UsageError
from bagau_bids.options import REQUIRED, argument, option

if TYPE_CHECKING:
    from bagau_bids.datasets.labelled import LabelledScan
    from bagau_bids.preprocessing.template import Template

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Data sets of FLAIRs and where their masks lie."""

    bids_dir: Path = argument("BIDS data set of FLAIRs", metavar="BIDS_DIR")
    masks: Path = option(
        REQUIRED,
        "derivative data set with a label-WMH_mask for each FLAIR: 0 background, 1 WMH, "
        "2 other pathology (not judged)",
        metavar="DERIVATIVE",
    )
    extra: tuple[tuple[Path, Path], ...] = option(
        (),
        "a further data set and its masks; may be repeated",
        metavar=("BIDS_DIR", "DERIVATIVE"),
        nargs=2,
        action="append",
    )

    @property
    def pairs(self) -> list[tuple[Path, Path]]:
        """The data sets with their masks, the first one first."""
        return [(self.bids_dir, self.masks), *self.extra]


@dataclass(frozen=True, kw_only=True)
class TemplateChoice:
    """Where the template comes from."""

    template: str = option(
        Processing().template,
        "template whose white-matter map guides the network (default: %(default)s)",
        choices=TEMPLATES,
    )
    templateflow_home: Path | None = option(
        None,
        "TemplateFlow folder (default: $TEMPLATEFLOW_HOME, then ~/.cache/templateflow)",
        metavar="PATH",
        type=values.any_path,
    )
    offline: bool = option(False, "never use the network, not even for the template")

    def find(self, cache_dir: Path) -> "Template":
        """Find the template; files that are made from it go to ``cache_dir``."""
        from bagau_bids.preprocessing.template import find_template

        return find_template(
            self.template, self.templateflow_home, offline=self.offline, cache_dir=cache_dir
        )


@dataclass(frozen=True, kw_only=True)
class Registration(TemplateChoice):
    """Where the template comes from, and how it is brought to each FLAIR."""

    registration: str = option(
        Processing().registration,
        "parameters of the registration of the template (default: %(default)s)",
        choices=REGISTRATIONS,
    )


def device_option(what: str, default: str = "auto", group: str | None = None) -> Any:
    """Return the field of ``--device``.

    Parameters
    ----------
    what
        What runs there, with its verb, for the help.
    default
        Where it runs, if nothing is said.
    group
        Title in the help.
    """
    return option(
        default,
        f"where {what}; auto: CUDA if usable (default: %(default)s)",
        group=group,
        metavar="{auto,cpu,cuda,cuda:N}",
        type=values.device,
    )


def licence_option(group: str) -> Any:
    """Return the field of ``--licence``, in a group of the help."""
    return option(
        "not stated",
        "licence of the weights, for their card (default: %(default)s)",
        group=group,
        metavar="TEXT",
    )


def labelled_scans(
    pairs: Sequence[tuple[Path, Path]], exclude: Collection[str] = ()
) -> "list[LabelledScan]":
    """FLAIRs of the data sets that have a mask; what has none is said in the log.

    Parameters
    ----------
    pairs : sequence of (Path, Path)
        Data set and derivative with its masks.
    exclude : collection of str
        Labels of subjects that are not read, without ``sub-``.

    Raises
    ------
    UsageError
        If a data set is not there.
    """
    from bagau_bids.bids.scans import find_scans
    from bagau_bids.datasets.labelled import pair_masks

    labelled = []
    for number, (bids_dir, derivative) in enumerate(pairs):
        if not bids_dir.is_dir():
            raise UsageError(f"{bids_dir}: no such folder; expected a BIDS data set")
        scans = [s for s in find_scans(bids_dir, Selection()) if s.subject not in exclude]
        found, notes = pair_masks(scans, derivative, number)
        labelled += found
        for note in notes:
            log.info("%s", note)
    return labelled

"""The command line of ``bagau-bids``: what is refused and how, and the frozen configuration.

Spellings follow fMRIPrep, sMRIPrep and MRIQC where they have the same option. Options and their
defaults come from :mod:`bagau_bids.config` alone.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NoReturn

from bagau_bids import __version__, values
from bagau_bids.config import ANALYSIS_LEVELS, Config
from bagau_bids.errors import UsageError
from bagau_bids.options import CommandParser

_DESCRIPTION = """\
Segment white matter hyperintensities from FLAIR alone.

BIDS_DIR is read, never written to. OUTPUT_DIR receives BIDS derivatives: for each FLAIR a
mask, a probability map, volumes, lesions and a page; at the group level tables and one page
over all of them.
"""

FIRST_COMMANDS = """\
no arguments were given. To begin:

  bagau segment SCAN.nii.gz OUT             FLAIRs of any name, or folders of DICOM
  bagau-bids DATA OUT participant group     a BIDS data set
  bagau --help, bagau-bids --help           everything else
"""

_EPILOG = """\
exit codes: 0 all done; 1 a scan failed; 2 wrong usage or nothing to process; 70 the workflow
could not be built or run; 127 a template, weights or another needed file is missing; 130 and
143 stopped by a signal.

Long options may be spelled with _ for -, as in --participant_label.
"""

_REJECTED = {
    "--anat-only": "only anatomical FLAIR images are ever processed",
    "--level": "all outputs are always written",
    "--ignore": "there is no step that can be ignored",
    "--force": "there is no step that can be forced; see --skull-strip and --registration",
    "--task-id": "a FLAIR has no task",
    "--run-id": "select runs with --bids-filter-file, key flair, entity run",
    "--modalities": "only FLAIR images are processed",
    "--subject-anatomical-reference": "each FLAIR is processed on its own",
    "--skull-strip-fixed-seed": "results are always reproducible; the seed is --random-seed",
}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that shows the value of an option once, after all its spellings."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        values = "" if action.nargs == 0 else self._format_args(action, action.dest.upper())
        return f"{', '.join(action.option_strings)} {values}".rstrip()


class _Reject(argparse.Action):
    """Refuse an option of another BIDS-App with the reason why it has no meaning here."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        """End with exit code 2 and the reason."""
        parser.error(f"{option_string} does not apply here: {self.const}. Leave it out.")


def build_parser() -> CommandParser:
    """Return the parser of ``bagau-bids``, which reads the configuration."""
    parser = CommandParser(
        prog="bagau-bids",
        usage="%(prog)s BIDS_DIR OUTPUT_DIR {participant,group} [{participant,group}] [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bagau-bids {__version__}")
    parser.add_options(Config)
    add_rejected(parser)
    return parser


def add_rejected(parser: argparse.ArgumentParser) -> None:
    """Have a parser refuse options of other BIDS-Apps, each with the reason."""
    for option, reason in _REJECTED.items():
        parser.add_argument(
            option,
            *(["-m"] if option == "--modalities" else []),
            dest="rejected",
            action=_Reject,
            nargs="*",
            const=reason,
            help=argparse.SUPPRESS,
        )


def parse(argv: Sequence[str] | None = None) -> Config:
    """Return the frozen configuration of a command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; None: those of the process.

    Raises
    ------
    UsageError
        If nothing is said at all.
    SystemExit
        Code 0 after ``--help`` and ``--version``, 2 with a message on stderr for wrong usage.
    """
    if not (sys.argv[1:] if argv is None else argv):
        raise UsageError(FIRST_COMMANDS)
    parser = build_parser()
    config = _settled(parser.read(argv), parser)
    _check_folders(config, parser)
    _check_combinations(config, parser)
    return config


def _settled(config: Config, parser: CommandParser) -> Config:
    """Fill in what follows from other options, and say each of several values once."""
    try:
        work_dir = values.readable_path(config.execution.work_dir.absolute())
    except argparse.ArgumentTypeError as error:
        parser.error(f"the work folder {error}")
    return replace(
        config,
        analysis_levels=tuple(one for one in ANALYSIS_LEVELS if one in config.analysis_levels),
        selection=_once(config.selection),
        processing=_once(config.processing),
        execution=replace(_once(config.execution), work_dir=work_dir),
    )


def _once(section: Any) -> Any:
    several = {
        one.name: tuple(dict.fromkeys(value))
        for one in fields(section)
        if isinstance(value := getattr(section, one.name), tuple)
    }
    return replace(section, **several)


def _check_folders(config: Config, parser: CommandParser) -> None:
    if not config.bids_dir.is_dir():
        found = "is a file" if config.bids_dir.exists() else "does not exist"
        parser.error(f"BIDS_DIR {config.bids_dir} {found}; expected the root of a BIDS data set")
    bids, output, work = (
        path.resolve() for path in (config.bids_dir, config.output_dir, config.execution.work_dir)
    )
    if output == bids:
        parser.error(
            f"OUTPUT_DIR is BIDS_DIR ({bids}), which is never written to; "
            f"use for example {bids / 'derivatives' / 'bagau-bids'}"
        )
    if bids in (work, *work.parents):
        parser.error(
            f"the work folder {work} lies inside BIDS_DIR {bids}, which must stay as it is; "
            "name another with -w, for example -w /tmp/bagau-work"
        )
    if work == output:
        parser.error(
            f"the work folder is OUTPUT_DIR ({work}); name another with -w, "
            "so that intermediate files do not lie among the results"
        )
    if output.exists() and not output.is_dir():
        parser.error(f"OUTPUT_DIR {output} is a file; expected a folder")


def _check_combinations(config: Config, parser: CommandParser) -> None:
    processing, resources = config.processing, config.resources
    other_spaces = set(processing.output_spaces) - {"orig", processing.template}
    if other_spaces:
        parser.error(
            f"--output-spaces {' '.join(sorted(other_spaces))}: the scans are registered to "
            f"{processing.template} only; choose it, or name the other with --template"
        )
    if config.selection.database_wipe and config.selection.database_dir is None:
        parser.error("--bids-database-wipe needs --bids-database-dir")
    if config.execution.reports_only and config.execution.boilerplate_only:
        parser.error("--reports-only and --boilerplate-only exclude each other")
    if (resources.omp_nthreads or 0) > resources.nprocs:
        print(
            f"bagau-bids: warning: --omp-nthreads {resources.omp_nthreads} is more than "
            f"--nprocs {resources.nprocs}",
            file=sys.stderr,
        )

"""The command line of ``bagau-bids``: every option, its checks, and the frozen configuration.

Spellings follow fMRIPrep, sMRIPrep and MRIQC where they have the same option. Defaults come
from :mod:`bagau_bids.config` alone.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from bagau_bids import __version__
from bagau_bids.cli import values
from bagau_bids.config import (
    ANALYSIS_LEVELS,
    MODELS,
    PERIVENTRICULAR_RULES,
    REGISTRATIONS,
    SKULL_STRIPS,
    TEMPLATES,
    Config,
    Execution,
    Processing,
    Resources,
    Selection,
    default_omp_nthreads,
    new_run_uuid,
)

_DESCRIPTION = """\
Segment white matter hyperintensities of presumed vascular origin from FLAIR alone.

BIDS_DIR is read, never written to. OUTPUT_DIR receives BIDS derivatives: for each FLAIR a
mask, a probability map, volumes, lesions and a page; at the group level tables and one page
over all of them.
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
    """Help that shows spellings with ``_`` only where there is no other."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = [option for option in action.option_strings if "_" not in option]
        if not shown:
            return super()._format_action_invocation(action)
        values = "" if action.nargs == 0 else self._format_args(action, action.dest.upper())
        return f"{', '.join(shown)} {values}".rstrip()


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


def _defaults(section: type) -> dict[str, Any]:
    instance = section()
    return {item.name: getattr(instance, item.name) for item in fields(section)}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``bagau-bids``; destinations are the fields of the configuration."""
    parser = argparse.ArgumentParser(
        prog="bagau-bids",
        usage="%(prog)s BIDS_DIR OUTPUT_DIR {participant,group} [{participant,group}] [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bagau-bids {__version__}")
    _add_positionals(parser)
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser, *, hidden: bool = False) -> None:
    """Add every option of ``bagau-bids`` to a parser, without or with a place in its help."""
    before = len(parser._actions)  # argparse has no public way to list arguments
    for section in (Selection, Processing, Resources, Execution):
        parser.set_defaults(**_defaults(section))
    parser.set_defaults(omp_nthreads=None)  # follows from --nprocs
    _add_selection(parser.add_argument_group("which scans"))
    _add_segmentation(parser.add_argument_group("segmentation"))
    _add_preprocessing(parser.add_argument_group("preprocessing"))
    _add_outputs(parser.add_argument_group("outputs"))
    _add_resources(parser.add_argument_group("resources"))
    _add_execution(parser.add_argument_group("how the run behaves"))
    _add_rejected(parser)
    for action in parser._actions[before:] if hidden else ():
        action.help = argparse.SUPPRESS


def option_words(args: argparse.Namespace, leave_out: Collection[str] = ()) -> list[str]:
    """Return the words of a command line that says what was parsed, with absolute paths.

    Parameters
    ----------
    args
        What a parser with the options of `add_options` returned.
    leave_out
        Destinations of options that are not to be said.
    """
    words, said = list[str](), {*leave_out}
    for action in build_parser()._actions:
        value = getattr(args, action.dest, action.default)
        if not action.option_strings or action.dest in said or value == action.default:
            continue
        said.add(action.dest)
        option = next(one for one in action.option_strings if one.startswith("--"))
        if action.nargs == 0:
            words += [option] * int(value)  # counted, or once
        else:
            words += [option, *map(str, value if isinstance(value, list) else [value])]
    return words


def _add_positionals(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bids_dir", type=values.any_path, help="root folder of the BIDS data set")
    parser.add_argument("output_dir", type=values.any_path, help="folder of the derivatives")
    parser.add_argument(
        "analysis_levels",
        metavar="{participant,group}",
        nargs="+",
        choices=ANALYSIS_LEVELS,
        help="participant: segment scans; group: tables and a page over all results in "
        "OUTPUT_DIR. Both may be given",
    )


def _add_selection(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--participant-label",
        "--participant_label",
        "--participant-labels",
        "--participant_labels",
        dest="participant_labels",
        metavar="LABEL",
        nargs="+",
        type=values.label("sub"),
        help="only these participants, with or without sub-; default: all",
    )
    group.add_argument(
        "--session-label",
        "--session_label",
        "--session-id",
        "--session_id",
        dest="session_labels",
        metavar="LABEL",
        nargs="+",
        type=values.label("ses"),
        help="only these sessions, with or without ses-; default: all",
    )
    group.add_argument(
        "--bids-filter-file",
        "--bids_filter_file",
        dest="bids_filters",
        metavar="FILE",
        type=values.existing_file,
        help='JSON such as {"flair": {"acquisition": "3D", "run": [1, 2]}} with pybids names of '
        'entities; null: must be absent, "*": must be present. Keys for other images are ignored',
    )
    group.add_argument(
        "--bids-database-dir",
        "--bids_database_dir",
        dest="database_dir",
        metavar="PATH",
        type=values.any_path,
        help="keep the pybids index of the whole data set here, and use the one that is there",
    )
    group.add_argument(
        "--bids-database-wipe",
        "--bids_database_wipe",
        dest="database_wipe",
        action="store_true",
        help="write the index anew",
    )
    group.add_argument(
        "--skip-bids-validation",
        "--skip_bids_validation",
        "--skip-bids-validator",
        "--skip_bids_validator",
        dest="skip_bids_validation",
        action="store_true",
        help="accept a data set without a valid dataset_description.json",
    )


def _add_segmentation(group: argparse._ArgumentGroup) -> None:
    defaults = Processing()
    group.add_argument(
        "--model", choices=MODELS, help=f"packaged weights to use (default: {defaults.model})"
    )
    group.add_argument(
        "--weights",
        metavar="PATH",
        nargs="+",
        type=values.any_path,
        help="weights (.safetensors) instead of packaged ones, the card (.json) beside each; the "
        "probabilities of several are averaged",
    )
    group.add_argument(
        "--tta",
        action="store_true",
        help="average with the result of the mirrored FLAIR; takes the network twice as long",
    )
    group.add_argument(
        "--infarct",
        action="store_true",
        help="put infarcts out too: a mask, a probability, their volume and their outline on the "
        "page; the weights must tell infarcts",
    )
    group.add_argument(
        "--known-lesions",
        "--known_lesions",
        metavar="[NAME=]PATH",
        nargs="+",
        type=values.derivatives_dir,
        help="derivatives with masks (label-lesion, -infarct, -tumour or -resection, suffix mask "
        "or roi) of what is known to be no WMH; preferred to *_label-lesion_roi beside the FLAIR, "
        "which is used anyway",
    )
    group.add_argument(
        "--ignore-lesion-roi",
        "--ignore_lesion_roi",
        action="store_true",
        help="do not use *_label-lesion_roi beside the FLAIR",
    )
    group.add_argument(
        "--threshold",
        type=values.threshold,
        metavar="P",
        help=f"probability above which a voxel is WMH (default: {defaults.threshold})",
    )
    group.add_argument(
        "--min-lesion-size",
        "--min_lesion_size",
        dest="min_lesion_size_mm3",
        type=values.lesion_size_mm3,
        metavar="MM3",
        help="remove lesions smaller than this volume in mm3 "
        f"(default: {defaults.min_lesion_size_mm3:g}, none)",
    )
    group.add_argument(
        "--periventricular-rule",
        "--periventricular_rule",
        choices=PERIVENTRICULAR_RULES,
        help="which white matter is periventricular. 10mm: up to 10 mm from the lateral "
        "ventricles. 3mm: up to 3 mm is juxtaventricular, from there to 13 mm periventricular "
        f"(default: {defaults.periventricular_rule})",
    )
    group.add_argument(
        "--random-seed",
        "--random_seed",
        type=values.whole_number(0),
        metavar="N",
        help=f"seed of the registration's sampling (default: {defaults.random_seed})",
    )


def _add_preprocessing(group: argparse._ArgumentGroup) -> None:
    defaults = Processing()
    group.add_argument(
        "--template",
        choices=TEMPLATES,
        help="template whose white-matter map guides the network; ICBM152NLin2009aSym comes with "
        f"the installation and needs no download (default: {defaults.template})",
    )
    group.add_argument(
        "--templateflow-home",
        "--templateflow_home",
        type=values.any_path,
        metavar="PATH",
        help="TemplateFlow folder; default: $TEMPLATEFLOW_HOME, then ~/.cache/templateflow",
    )
    group.add_argument("--offline", action="store_true", help="never try to use the network")
    group.add_argument(
        "--registration",
        choices=REGISTRATIONS,
        help=f"parameters of the registration of the template (default: {defaults.registration})",
    )
    group.add_argument(
        "--skull-strip",
        "--skull_strip",
        choices=SKULL_STRIPS,
        help="auto: find the brain, detect FLAIRs that are stripped already; skip: take every "
        f"FLAIR as stripped (default: {defaults.skull_strip})",
    )
    group.add_argument(
        "-d",
        "--derivatives",
        metavar="[NAME=]PATH",
        nargs="+",
        type=values.derivatives_dir,
        help="use the FLAIR's brain mask where one is found in these derivatives",
    )
    group.add_argument(
        "--sloppy", action="store_true", help="low quality and fast, for tests of an installation"
    )


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output-spaces",
        "--output_spaces",
        nargs="+",
        type=values.output_space,
        metavar="SPACE",
        help="orig: the FLAIR's own grid, always written; a template's name: also there",
    )
    group.add_argument(
        "--output-layout", choices=("bids",), help="accepted for compatibility; always bids"
    )
    group.add_argument(
        "--aggregate-session-reports",
        "--aggregate_session_reports",
        type=values.whole_number(1),
        metavar="N",
        help="one page a participant up to N sessions, one page a session above "
        f"(default: {Execution().aggregate_session_reports})",
    )
    group.add_argument(
        "--reports-only",
        "--reports_only",
        action="store_true",
        help="write the pages again from the derivatives in OUTPUT_DIR and process nothing",
    )
    group.add_argument(
        "--boilerplate-only",
        "--boilerplate_only",
        "--boilerplate",
        action="store_true",
        help="write logs/CITATION.md and .bib and process nothing",
    )
    group.add_argument(
        "--md-only-boilerplate",
        "--md_only_boilerplate",
        action="store_true",
        help="accepted for compatibility; the text is always Markdown only",
    )


def _add_resources(group: argparse._ArgumentGroup) -> None:
    defaults = Resources()
    group.add_argument(
        "--device",
        type=values.device,
        metavar="{auto,cpu,cuda,cuda:N}",
        help=f"where the networks run; auto: CUDA if usable (default: {defaults.device})",
    )
    group.add_argument(
        "--batch-size",
        "--batch_size",
        type=values.whole_number(1),
        metavar="N",
        help=f"slices at once (default: {defaults.batch_size})",
    )
    group.add_argument(
        "--nprocs",
        "--nthreads",
        "--n_cpus",
        "--n-cpus",
        "-n-cpus",
        "--ncpus",
        "--n_procs",
        "--n-procs",
        type=values.whole_number(1),
        metavar="N",
        help=f"threads in total (default: the cores this process may use, here {defaults.nprocs})",
    )
    group.add_argument(
        "--omp-nthreads",
        "--omp_nthreads",
        "--ants-nthreads",
        "--ants_nthreads",
        type=values.whole_number(1),
        metavar="N",
        help="threads of one step (default: one less than --nprocs, up to 8)",
    )
    group.add_argument(
        "--mem",
        dest="mem_gb",
        type=values.memory_gb(None),
        metavar="AMOUNT",
        help="memory that may be used, with its unit, such as 16G or 16000M; default: 90 %% of "
        "what there is",
    )
    group.add_argument(
        "--mem-mb",
        "--mem_mb",
        dest="mem_gb",
        type=values.memory_gb("M"),
        metavar="MB",
        help="the same, a bare number is in MB",
    )
    group.add_argument(
        "--mem-gb",
        "--mem_gb",
        dest="mem_gb",
        type=values.memory_gb("G"),
        metavar="GB",
        help="the same, a bare number is in GB",
    )
    group.add_argument(
        "--low-mem",
        "--low_mem",
        action="store_true",
        help="keep intermediate images uncompressed: less memory, more disk",
    )
    group.add_argument(
        "--use-plugin",
        "--use_plugin",
        "--nipype-plugin-file",
        dest="plugin_file",
        type=values.existing_file,
        metavar="FILE",
        help="YAML with nipype's plugin: and plugin_args:",
    )


def _add_execution(group: argparse._ArgumentGroup) -> None:
    defaults = Execution()
    group.add_argument(
        "-w",
        "--work-dir",
        "--work_dir",
        type=values.any_path,
        metavar="PATH",
        help="folder of intermediate files; the same again continues an interrupted run "
        f"(default: ./{defaults.work_dir})",
    )
    group.add_argument(
        "--clean-workdir",
        "--clean_workdir",
        action="store_true",
        help="before the run, delete what earlier runs left in the work folder of these scans",
    )
    group.add_argument(
        "--rm-work-on-success",
        "--rm_work_on_success",
        action="store_true",
        help="delete the work folder of each scan that is done",
    )
    group.add_argument(
        "--stop-on-first-crash",
        "--stop_on_first_crash",
        action="store_true",
        help="stop when a scan fails; default: go on with the others",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1 also when a participant has no FLAIR",
    )
    group.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="find the scans, check files and build the workflow; process nothing",
    )
    group.add_argument(
        "--write-graph", "--write_graph", action="store_true", help="write the workflow's graph"
    )
    group.add_argument(
        "--resource-monitor",
        "--resource_monitor",
        action="store_true",
        help="record memory and processor use of every step",
    )
    group.add_argument(
        "--crashfile-format",
        "--crashfile_format",
        choices=("txt",),
        help="accepted for compatibility; always txt",
    )
    group.add_argument(
        "--debug", nargs="+", choices=("pdb",), help="pdb: open the debugger where a run crashes"
    )
    group.add_argument(
        "--notrack",
        action="store_true",
        help="accepted for compatibility; nothing is ever tracked",
    )
    group.add_argument(
        "-v",
        "--verbose",
        action="count",
        help="say more: -v what is done, -vv also libraries, -vvv everything",
    )


def _add_rejected(parser: argparse.ArgumentParser) -> None:
    for option, reason in _REJECTED.items():
        parser.add_argument(
            *{option, option.replace("-", "_").replace("__", "--", 1)},
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
    SystemExit
        Code 0 after ``--help`` and ``--version``, 2 with a message on stderr for wrong usage.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    _check_folders(parser, args)
    _check_combinations(parser, args)
    return _config(args)


def _check_folders(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    try:
        args.work_dir = values.readable_path(args.work_dir.absolute())
    except argparse.ArgumentTypeError as error:
        parser.error(f"the work folder {error}")
    if not args.bids_dir.is_dir():
        found = "is a file" if args.bids_dir.exists() else "does not exist"
        parser.error(f"BIDS_DIR {args.bids_dir} {found}; expected the root of a BIDS data set")
    bids, output, work = (
        path.resolve() for path in (args.bids_dir, args.output_dir, args.work_dir)
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


def _check_combinations(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    other_spaces = set(args.output_spaces) - {"orig", args.template}
    if other_spaces:
        parser.error(
            f"--output-spaces {' '.join(sorted(other_spaces))}: the scans are registered to "
            f"{args.template} only; choose it, or name the other with --template"
        )
    if args.database_wipe and args.database_dir is None:
        parser.error("--bids-database-wipe needs --bids-database-dir")
    if args.reports_only and args.boilerplate_only:
        parser.error("--reports-only and --boilerplate-only exclude each other")
    if args.omp_nthreads is None:
        args.omp_nthreads = default_omp_nthreads(args.nprocs)
    elif args.omp_nthreads > args.nprocs:
        print(
            f"bagau-bids: warning: --omp-nthreads {args.omp_nthreads} is more than "
            f"--nprocs {args.nprocs}",
            file=sys.stderr,
        )


def _config(args: argparse.Namespace) -> Config:
    given = vars(args)

    def section(kind: type) -> Any:
        wanted = {item.name: given[item.name] for item in fields(kind)}
        return kind(
            **{
                name: tuple(dict.fromkeys(value)) if isinstance(value, list) else value
                for name, value in wanted.items()
            }
        )

    return Config(
        bids_dir=args.bids_dir,
        output_dir=args.output_dir,
        analysis_levels=tuple(level for level in ANALYSIS_LEVELS if level in args.analysis_levels),
        run_uuid=new_run_uuid(),
        selection=section(Selection),
        processing=section(Processing),
        resources=section(Resources),
        execution=section(Execution),
    )

"""``bagau fetch``: get the template's files into a TemplateFlow store, and check them."""

import argparse
from pathlib import Path

from bagau_bids.errors import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.add_argument(
        "--dest",
        metavar="DIR",
        type=Path,
        help="TemplateFlow store to fill; give the same folder to bagau-bids with "
        "--templateflow-home (default: $TEMPLATEFLOW_HOME, then ~/.cache/templateflow)",
    )
    parser.add_argument(
        "--template",
        choices=("MNI152NLin2009cSym",),
        default="MNI152NLin2009cSym",
        help="template to fetch; ICBM152NLin2009aSym comes with the installation "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--offline",
        action="store_true",
        help="only check what is there: complete, undamaged, as the manifest lists it",
    )


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.preprocessing.template import (
        find_template,
        templateflow_home,
        write_manifest,
    )

    home = (args.dest or templateflow_home()).absolute()
    template = find_template(args.template, home, offline=args.offline)
    manifest = write_manifest(template, home)
    for path in (template.t1w, template.wm_probseg, template.brain_mask):
        print(f"complete: {path}")
    print(f"SHA-256 of each in {manifest} (sha256sum -c {manifest.name} checks them)")
    print(f"To use it: bagau-bids ... --templateflow-home {home} --offline")
    return EXIT_OK

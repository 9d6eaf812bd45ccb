"""``bagau fetch``: get the template's files into a TemplateFlow store, and check them."""

from dataclasses import dataclass
from pathlib import Path

from bagau_bids.errors import EXIT_OK
from bagau_bids.options import option


@dataclass(frozen=True)
class Options:
    """What the subcommand is told."""

    dest: Path | None = option(
        None,
        "TemplateFlow store to fill; give the same folder to bagau-bids with "
        "--templateflow-home (default: $TEMPLATEFLOW_HOME, then ~/.cache/templateflow)",
        metavar="DIR",
    )
    template: str = option(
        "MNI152NLin2009cSym",
        "template to fetch; ICBM152NLin2009aSym comes with the installation "
        "(default: %(default)s)",
        choices=("MNI152NLin2009cSym",),
    )
    offline: bool = option(
        False, "only check what is there: complete, undamaged, as the manifest lists it"
    )


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.preprocessing.template import (
        find_template,
        templateflow_home,
        write_manifest,
    )

    home = (options.dest or templateflow_home()).absolute()
    template = find_template(options.template, home, offline=options.offline)
    manifest = write_manifest(template, home)
    for path in (template.t1w, template.wm_probseg, template.brain_mask):
        print(f"complete: {path}")
    print(f"SHA-256 of each in {manifest} (sha256sum -c {manifest.name} checks them)")
    print(f"To use it: bagau-bids ... --templateflow-home {home} --offline")
    return EXIT_OK

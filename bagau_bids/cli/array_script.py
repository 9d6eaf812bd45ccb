"""Scripts that submit a SLURM job array, what is left of it, and the step that comes after it."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from bagau_bids import __version__

INDENT = "    "


@dataclass(frozen=True)
class ArrayJob:
    """What a script submits.

    Attributes
    ----------
    sbatch
        Options of sbatch for tasks and last step, such as ``--mem=4G``.
    folder
        Where lists of tasks and their output go.
    tool
        Body of the shell function that runs a program of bagau-bids, its words in ``"$@"``.
    list_command
        Words of the command that prints a line for each task that is not done.
    work
        Body of the shell function that does a line, whose words are in ``"$@"``; it calls
        ``tool``.
    last_command
        Words of the command that comes after all tasks.
    last_sbatch
        Options of sbatch for it alone.
    at_once
        Tasks that may run at once; 0: no limit.
    dependency
        When the last step runs: ``afterok`` or ``afterany``.
    needed_folders
        Further folders that are made before anything runs.
    """

    sbatch: tuple[str, ...]
    folder: Path
    tool: tuple[str, ...]
    list_command: Sequence[str]
    work: tuple[str, ...]
    last_command: Sequence[str]
    last_sbatch: tuple[str, ...] = ()
    at_once: int = 0
    dependency: str = "afterok"
    needed_folders: tuple[Path, ...] = ()


def array_script(job: ArrayJob) -> str:
    """Return the text of the script."""
    from jinja2 import Environment, StrictUndefined

    text = files("bagau_bids.data").joinpath("slurm", "array.sh").read_text(encoding="utf-8")
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)
    return template.render(
        version=__version__,
        written_by=" ".join(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]).split()),
        sbatch=job.sbatch,
        folder=shlex.quote(str(job.folder)),
        at_once=job.at_once,
        tool=_indented(job.tool),
        list=shlex.join(job.list_command),
        work=_indented(job.work),
        last=shlex.join(job.last_command),
        last_sbatch="".join(f"{shlex.quote(option)} " for option in job.last_sbatch),
        dependency=job.dependency,
        needed_folders="".join(f" {shlex.quote(str(one))}" for one in job.needed_folders),
    )


def of_installation(prefix: Path) -> tuple[str, ...]:
    """Body of ``tool`` for a virtual environment, or another installation with a ``bin``."""
    return (f'PATH={shlex.quote(str(prefix / "bin"))}:$PATH "$@"',)


def of_container(image: Path, paths: Iterable[Path], *, gpu: bool) -> tuple[str, ...]:
    """Body of ``tool`` for an Apptainer or Singularity image.

    Parameters
    ----------
    image : Path
    paths : iterable of Path
        What the programs read and write; each lies at the same path in the container. The work
        folder is made known to it too, where there is one.
    gpu : bool
        Whether the container needs the GPU's driver.
    """
    bound = " ".join(f"--bind {shlex.quote(str(path))}" for path in dict.fromkeys(paths))
    return (
        "local runtime",
        "runtime=$(command -v apptainer || command -v singularity)",
        f'"$runtime" exec --cleanenv{" --nv" if gpu else ""} {bound} \\',
        f'    ${{work_dir:+--bind "$work_dir"}} {shlex.quote(str(image))} "$@"',
    )


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"{INDENT}{line}" for line in lines)

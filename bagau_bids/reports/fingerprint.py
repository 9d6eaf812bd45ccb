"""Whether a participant's page is still what its results would give: by what it was made from.

A page carries a digest of everything it was made from, and of its own text. Nothing here loads
what draws.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bagau_bids import __version__
from bagau_bids.bids.edited import kept_of
from bagau_bids.files import file_digest

# As `participant.html` writes it, near the top of a page.
MARK = re.compile(r'<meta name="made-from" content="([0-9a-f]{64})">')
EMPTY_MARK = '<meta name="made-from" content="">'
HEAD_LENGTH = 4096


def further_pages(output_dir: Path) -> dict[str, tuple[Path, ...]]:
    """Find the pages that participants have besides their own, of sessions or scans.

    Of all at once: looking for those of one goes through the pages of all, too.

    Returns
    -------
    dict of str to tuple of Path
        Sorted, by participant (``sub-<label>``); those who have none are left out.
    """
    found: dict[str, tuple[Path, ...]] = {}
    for page in sorted(output_dir.glob("sub-*_*.html")):
        participant = page.name.split("_")[0]
        found[participant] = (*found.get(participant, ()), page)
    return found


def pages_in_place(
    output_dir: Path, participant: str, most_sessions: int, further: Sequence[Path]
) -> tuple[Path, ...]:
    """Return the pages of a participant where none would come out differently now.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    participant : str
        ``sub-<label>``.
    most_sessions : int
        Sessions above which each has a page of its own.
    further : sequence of Path
        The participant's further pages that are there, see `further_pages`.

    Returns
    -------
    tuple of Path
        The participant's page, then those of sessions or scans; empty where they are to be
        written.
    """
    page = output_dir / f"{participant}.html"
    if not page.is_file():
        return ()
    text = page.read_bytes().decode("utf-8", "replace")
    found = MARK.search(text, endpos=HEAD_LENGTH)
    if found is None:
        return ()
    unmarked = text.replace(found[0], EMPTY_MARK, 1)
    source = made_from(output_dir, participant, most_sessions, further)
    return (page, *further) if found[1] == page_mark(source, unmarked) else ()


def marked(text: str, source: str) -> str:
    """Return a page with its mark.

    Parameters
    ----------
    text : str
        The page, its mark empty.
    source : str
        As by `made_from`.
    """
    mark = EMPTY_MARK.replace('""', f'"{page_mark(source, text)}"')
    return text.replace(EMPTY_MARK, mark, 1)


def page_mark(source: str, unmarked: str) -> str:
    """SHA-256 of what a page was made from, and of the page without its mark."""
    return hashlib.sha256(f"{source}\n{unmarked}".encode("utf-8", "backslashreplace")).hexdigest()


def made_from(
    output_dir: Path, participant: str, most_sessions: int, further: Sequence[Path]
) -> str:
    """SHA-256, hexadecimal, of what the participant's page is made from and goes with.

    The version of the program, the option, the participant's files with their pictures and
    crash files, edited masks that were kept, its further pages, and the text of the methods.
    """
    digest = hashlib.sha256(f"{__version__}\n{most_sessions}\n".encode())
    for path in (
        *sorted(_files(output_dir / participant)),
        *kept_of(output_dir, participant),
        *further,
        *sorted((output_dir / "logs").glob("CITATION.*")),
    ):
        name = path.relative_to(output_dir).as_posix()
        digest.update(f"{name!a} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())

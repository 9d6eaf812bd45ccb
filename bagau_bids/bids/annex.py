"""Files of DataLad data sets whose content was not fetched: links to nothing."""

from pathlib import Path


def broken_link(path: Path) -> str:
    """Say what is wrong with a link to nothing, and what to do; empty for anything else.

    git-annex keeps the content of a file below ``.git/annex`` and a link to it in the data set.
    """
    if not path.is_symlink() or path.exists():
        return ""
    target = path.readlink()
    if ".git/annex/" in target.as_posix():
        return f"{path}: its content was not fetched; run: datalad get {path}"
    return f"{path}: a link to {target}, which does not exist"

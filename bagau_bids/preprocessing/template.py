"""The template and its white-matter map: found, fetched and verified.

``MNI152NLin2009cSym`` comes from a TemplateFlow store through TemplateFlow's own client.
``ICBM152NLin2009aSym`` is what the nilearn package carries, so it needs no network. Neither
ever replaces the other.
"""

import gzip
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagau_bids.bids.derivatives import bids_uri
from bagau_bids.errors import MissingResourceError
from bagau_bids.files import file_digest, replacing, write_text

TEMPLATEFLOW_TEMPLATES = ("MNI152NLin2009cSym",)
EMBEDDED_TEMPLATES = ("ICBM152NLin2009aSym",)
DATASETS = {"MNI152NLin2009cSym": "templateflow", "ICBM152NLin2009aSym": "nilearn"}
MANIFEST = "bagau-manifest.sha256"

# What is asked of TemplateFlow for each part of a template, at 1 mm.
QUERIES: Mapping[str, Mapping[str, str | None]] = {
    "t1w": {"suffix": "T1w", "desc": None, "label": None},
    "wm_probseg": {"suffix": "probseg", "label": "WM", "desc": None},
    "brain_mask": {"suffix": "mask", "desc": "brain", "label": None},
}
FILE_ENDS = {
    "t1w": "T1w.nii.gz",
    "wm_probseg": "label-WM_probseg.nii.gz",
    "brain_mask": "desc-brain_mask.nii.gz",
}


@dataclass(frozen=True)
class Template:
    """Files of one template, all on one grid.

    Attributes
    ----------
    name
        As in ``--template``.
    t1w
        T1-weighted image, with or without the head.
    wm_probseg
        Probability of white matter, 0 to 1.
    brain_mask
        Brain mask, 0 or 1.
    """

    name: str
    t1w: Path
    wm_probseg: Path
    brain_mask: Path

    @property
    def uris(self) -> dict[str, str]:
        """BIDS URIs of the files."""
        dataset = DATASETS[self.name]
        parts = {"t1w": self.t1w, "wm_probseg": self.wm_probseg, "brain_mask": self.brain_mask}
        return {
            part: bids_uri(dataset, f"tpl-{self.name}/{path.name}") for part, path in parts.items()
        }


def find_template(
    name: str,
    home: Path | None = None,
    *,
    offline: bool = False,
    cache_dir: Path | None = None,
) -> Template:
    """Return the files of a template, fetched if need be and verified.

    Parameters
    ----------
    name
        ``MNI152NLin2009cSym`` or ``ICBM152NLin2009aSym``.
    home
        TemplateFlow store; None stands for ``TEMPLATEFLOW_HOME``, else TemplateFlow's default.
    offline
        Never touch the network.
    cache_dir
        Where nilearn's embedded maps are written out; ``ICBM152NLin2009aSym`` needs it.

    Raises
    ------
    MissingResourceError
        When a file is missing, empty, damaged or cannot be fetched; the message lists the
        files, the place and the command that gets them.
    """
    if name in EMBEDDED_TEMPLATES:
        if cache_dir is None:
            raise ValueError(f"{name} is written out of nilearn, which needs cache_dir")
        return _write_embedded(name, cache_dir)
    if name not in TEMPLATEFLOW_TEMPLATES:
        raise MissingResourceError(
            f"template {name!r} is not known; "
            f"choose one of {', '.join(TEMPLATEFLOW_TEMPLATES + EMBEDDED_TEMPLATES)}"
        )
    home = templateflow_home() if home is None else home.absolute()
    paths = _locate(name, home)
    missing = {
        part: paths.get(part, path)
        for part, path in expected_paths(name, home).items()
        if part not in paths or not _size(paths[part])
    }
    if missing and offline:
        raise MissingResourceError(_missing_message(name, home, missing, "--offline is set"))
    if missing:
        _fetch(name, home, missing)
        paths |= missing
    for path in paths.values():
        verify_gzip(path, name, home)
    return Template(name, **paths)


def templateflow_home() -> Path:
    """Return TemplateFlow's store: ``TEMPLATEFLOW_HOME``, else its default in the user's cache."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("TEMPLATEFLOW_HOME") or user_cache_dir("templateflow")).absolute()


def expected_paths(name: str, home: Path) -> dict[str, Path]:
    """Return where TemplateFlow keeps each part of a template."""
    folder = home / f"tpl-{name}"
    return {part: folder / f"tpl-{name}_res-1_{end}" for part, end in FILE_ENDS.items()}


def verify_gzip(path: Path, name: str, home: Path) -> str:
    """Read a gzip file to its end and return its SHA-256 in hexadecimal.

    Raises
    ------
    MissingResourceError
        When it is truncated or damaged: an interrupted download stays in the store for ever,
        because TemplateFlow looks at the size only.
    """
    try:
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass
    except (EOFError, OSError, zlib.error) as error:
        raise MissingResourceError(
            f"{path}: found a truncated or damaged gzip file of {_size(path)} bytes ({error}); "
            "expected a complete NIfTI file, and an interrupted download leaves such a file; "
            f"delete it and run: {fetch_command(name, home)}"
        ) from error
    return file_digest(path)


def fetch_command(name: str, home: Path) -> str:
    """Return the command line that fetches a template into a store."""
    return f"bagau fetch --template {name} --dest {home}"


def write_manifest(template: Template, home: Path) -> Path:
    """Write the SHA-256 of a template's files beside them, in the format of ``sha256sum``.

    Files listed in an older manifest must still have the sums written there.

    Raises
    ------
    MissingResourceError
        When a file is damaged or is not the one the manifest lists.
    """
    files = (template.t1w, template.wm_probseg, template.brain_mask)
    manifest = home / f"tpl-{template.name}" / MANIFEST
    known = {}
    if manifest.is_file():
        lines = (line.split(maxsplit=1) for line in manifest.read_text().splitlines())
        known = {file: digest for digest, file in lines}
    digests = {path.name: verify_gzip(path, template.name, home) for path in files}
    for file, digest in digests.items():
        if known.get(file, digest) != digest:
            raise MissingResourceError(
                f"{manifest.parent / file}: found SHA-256 {digest}, expected {known[file]} as "
                f"listed in {manifest}; delete the file that is wrong (the image or the "
                f"manifest) and run: {fetch_command(template.name, home)}"
            )
    text = "".join(f"{digest}  {file}\n" for file, digest in sorted(digests.items()))
    write_text(manifest, text)
    return manifest


def _locate(name: str, home: Path) -> dict[str, Path]:
    """Ask TemplateFlow's client for the files that the store lists, fetching nothing."""
    if not home.is_dir() or not any(home.iterdir()):
        return {}
    client = _client(home)
    found = {}
    for part in QUERIES:
        paths = client.ls(name, **_query(part))
        if paths:
            found[part] = Path(paths[0])
    return found


def _fetch(name: str, home: Path, missing: Mapping[str, Path]) -> None:
    """Let TemplateFlow's client download what is missing.

    It downloads into a folder of its own in the store; complete files are then renamed into
    place. So an interrupted download leaves nothing behind, and two runs that fetch into one
    store do not read each other's half-written files.
    """
    import requests

    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".bagau-fetch-", dir=home) as scratch:
            placeholders = expected_paths(name, Path(scratch))
            for part in missing:
                placeholders[part].parent.mkdir(exist_ok=True)
                placeholders[part].touch()  # the client downloads files of zero bytes
            client = _client(Path(scratch))
            for part, path in missing.items():
                fetched = Path(client.get(name, raise_empty=True, **_query(part)))
                verify_gzip(fetched, name, home)
                path.parent.mkdir(parents=True, exist_ok=True)
                fetched.replace(path)
    except requests.RequestException as error:
        reason = f"the download failed ({type(error).__name__})"
    except OSError as error:
        reason = f"the store cannot be written ({error})"
    except RuntimeError as error:  # the client's own error
        reason = f"the download failed ({error})"
    else:
        return
    raise MissingResourceError(_missing_message(name, home, missing, reason))


def _query(part: str) -> dict[str, Any]:
    return {"resolution": 1, "extension": ".nii.gz", **QUERIES[part]}


def _missing_message(name: str, home: Path, missing: Mapping[str, Path], reason: str) -> str:
    files = "".join(f"\n  {path}" for path in missing.values())
    return (
        f"template {name}: {len(missing)} of {len(QUERIES)} files are missing or empty in the "
        f"TemplateFlow store {home}:{files}\n"
        f"They were not fetched because {reason}. On a computer with a network run:\n"
        f"  {fetch_command(name, home)}\n"
        "and copy that folder here if need be (name it with --templateflow-home or "
        "TEMPLATEFLOW_HOME), or choose --template ICBM152NLin2009aSym, which needs no download."
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _client(home: Path) -> Any:
    """Return TemplateFlow's client for a store."""
    with _import_home(home):
        from templateflow.client import TemplateFlowClient
    return TemplateFlowClient(root=home)


@contextmanager
def _import_home(home: Path) -> Iterator[None]:
    """Keep the import of templateflow from filling the user's cache with a stub store.

    The package reads ``TEMPLATEFLOW_HOME`` when it is first imported, and unzips a skeleton
    there if the folder is empty; `home` is not. The variable is set back at once.
    """
    if "templateflow" in sys.modules:
        yield
        return
    before = os.environ.get("TEMPLATEFLOW_HOME")
    os.environ["TEMPLATEFLOW_HOME"] = str(home)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TEMPLATEFLOW_HOME"]
        else:
            os.environ["TEMPLATEFLOW_HOME"] = before


def _write_embedded(name: str, cache_dir: Path) -> Template:
    """Write nilearn's ICBM 2009a symmetric maps (1 mm, skull-stripped T1w) as NIfTI files."""
    from nilearn import datasets

    folder = cache_dir / f"tpl-{name}"
    paths = {part: folder / f"tpl-{name}_res-1_{end}" for part, end in FILE_ENDS.items()}
    if not all(_size(path) for path in paths.values()):
        images = {
            "t1w": datasets.load_mni152_template(resolution=1),
            "wm_probseg": datasets.load_mni152_wm_template(resolution=1),
            "brain_mask": datasets.load_mni152_brain_mask(resolution=1),
        }
        for part, path in paths.items():
            with replacing(path) as temporary:
                images[part].to_filename(temporary)
    return Template(name, **paths)

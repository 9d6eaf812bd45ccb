"""Remove the ITK wrappers that nothing here can load from an installation, for the images.

The itk wheels hold a library of compiled code for each of about a hundred ITK modules, 1.4 GB in
all. ITK's own lists (``itk/Configuration/*Config.py``) say which modules each module needs. What
the modules used by bagau_bids need, directly or through others, stays.

    python prune_itk.py /opt/venv/lib/python3.11/site-packages/itk
"""

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

# ITK modules that hold what bagau_bids imports from itk; a test compares.
USED = (
    "Elastix",
    "ITKBridgeNumPy",
    "ITKCommon",
    "ITKDisplacementField",
    "ITKIOTransformBase",
    "ITKIOTransformHDF5",
    "ITKTransform",
)
LIBRARY = re.compile(r"_(\w+)Python\.(?:abi3|cpython[\w-]*)\.so")
LIBRARY_OF_WRAPPER = re.compile(r"^ *from \. import _(\w+)Python$", re.MULTILINE)


def needed_modules(folder: Path, used: Iterable[str] = USED) -> set[str]:
    """Return ITK modules and all that they depend on, by the lists in the package's folder."""
    needed: set[str] = set()
    waiting = list(used)
    while waiting:
        module = waiting.pop()
        if module not in needed:
            needed.add(module)
            waiting += _dependencies(folder / "Configuration" / f"{module}Config.py")
    return needed


def _dependencies(configuration: Path) -> tuple[str, ...]:
    for statement in ast.parse(configuration.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "depends":
            return ast.literal_eval(statement.value)
    raise SystemExit(f"{configuration}: found no list `depends`; this is another kind of itk")


def unneeded_files(folder: Path, used: Iterable[str] = USED) -> list[Path]:
    """Return the libraries of modules that are not needed, and the Python wrappers of these."""
    needed = needed_modules(folder, used)
    libraries = {
        found[1]: path for path in folder.glob("_*.so") if (found := LIBRARY.fullmatch(path.name))
    }
    unneeded = libraries.keys() - needed
    wrappers = [
        path
        for path in folder.glob("*Python.py")
        if unneeded.intersection(LIBRARY_OF_WRAPPER.findall(path.read_text(encoding="utf-8")))
    ]
    return [*(libraries[module] for module in unneeded), *wrappers]


if __name__ == "__main__":
    for path in unneeded_files(Path(sys.argv[1])):
        path.unlink()

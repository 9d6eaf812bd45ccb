"""antspyx without what it loads for plots and statistics: a seventh of the time.

``import ants`` takes 1.4 s, of which 1.2 go to Matplotlib, scikit-learn, statsmodels and SciPy's
statistics, which N4 does not need. Here they are put off until something of them is used.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_ONE_AT_A_TIME = threading.Lock()
PUT_OFF = ("matplotlib", "mpl_toolkits", "scipy.stats", "sklearn", "statsmodels")


def load_ants() -> Any:
    """Return antspyx; where it is loaded already, as it is.

    All of it works: what was put off is loaded when it is used. Other modules that are loaded
    afterwards find nothing of this; and nothing is put off where other threads of the user's
    might load some at the time.
    """
    with _ONE_AT_A_TIME:
        alone = all(
            thread is threading.current_thread() or thread.daemon
            for thread in threading.enumerate()
        )
        if "ants" in sys.modules or not alone:
            return importlib.import_module("ants")
        return _load_quickly()


def _load_quickly() -> Any:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module("ants")
    except Exception:  # a version that does more with them while it is loaded
        for name in [name for name in sys.modules if name.partition(".")[0] == "ants"]:
            del sys.modules[name]
    finally:
        sys.meta_path.remove(finder)
        finder.forget()
    return importlib.import_module("ants")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes modules that are empty as yet of the libraries that are put off."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not any(name == one or name.startswith(f"{one}.") for one in PUT_OFF):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Later(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        self.made.append(module.__name__)

    def forget(self) -> None:
        """Let what is imported from now on be the libraries themselves."""
        for name in self.made:
            module = sys.modules.pop(name)
            package, _, child = name.rpartition(".")
            there = vars(sys.modules[package]) if package in sys.modules else {}
            if there.get(child) is module:
                delattr(sys.modules[package], child)


class _Later(ModuleType):
    """A module, or something in one, that is loaded once it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by the import system
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        if any(isinstance(finder, _Finder) for finder in sys.meta_path):
            return _Later(full)  # ants is still being loaded: `from MODULE import NAME`
        return getattr(_real(self.__name__), name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _real(self.__name__)(*args, **options)


def _real(full: str) -> Any:
    """Find what a dotted name stands for: a module, or something in one."""
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError:
        module, _, name = full.rpartition(".")
        return getattr(_real(module), name)

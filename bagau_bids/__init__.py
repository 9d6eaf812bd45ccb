"""White matter hyperintensities from FLAIR alone, as a BIDS-App.

From Python: ``from bagau_bids import segment_flair``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bagau_bids.api import Segmentation, segment_flair

__all__ = ["Segmentation", "segment_flair"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: the command line starts without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    from bagau_bids import api

    return getattr(api, name)

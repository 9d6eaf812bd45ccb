"""White matter hyperintensities from FLAIR alone, as a BIDS-App."""

__version__ = "0.1.0"

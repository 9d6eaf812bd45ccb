"""How far a volume may be trusted: what the model's card measured at such a load, and the norms.

The figures of a card are those of scans that its training was watched on: a validation, no test.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bagau_bids.bids.records import Model
from bagau_bids.config import MODELS
from bagau_bids.network.cards import find_weights, read_card

SMALL_ML = 5.0  # loads below it are judged by scans below it
SUBJECT = "sub-"  # synthetic scans of a card have other names


@dataclass(frozen=True)
class Expectation:
    """What to expect of a scan, for a person.

    Parameters
    ----------
    dice : str
        Range of the overlap with masks drawn by hand; empty where none was measured.
    words : str
        Range of the error of the volume, and where the figures come from.
    """

    dice: str
    words: str


@dataclass(frozen=True)
class Judged:
    """A validation scan of a card: overlap, and volumes found and drawn (ml)."""

    dice: float
    found_ml: float
    drawn_ml: float

    @property
    def error_percent(self) -> float:
        """Error of the volume that was found."""
        return 100 * (self.found_ml / self.drawn_ml - 1)


def expectation(models: Sequence[Model], volume_ml: float) -> Expectation:
    """Say what accuracy to expect of the volume that models found in a scan.

    Parameters
    ----------
    models : sequence of Model
        As recorded; known are the packaged ones, by their SHA-256.
    volume_ml : float
        Of all WMH found.
    """
    if len(models) != 1 or not _is_packaged(models[0]):
        return Expectation(
            "", "Not known for these weights: score masks of your own by bagau evaluate."
        )
    name = models[0].name
    load = f"below {SMALL_ML:g} ml" if volume_ml < SMALL_ML else f"of {SMALL_ML:g} ml and more"
    scans = [one for one in _judged(name) if (one.found_ml < SMALL_ML) == (volume_ml < SMALL_ML)]
    if not scans:
        return Expectation(
            "", f"Not measured for volumes {load} (bagau models {name}): look at the outlines."
        )
    errors = sorted(one.error_percent for one in scans)
    overlaps = sorted(one.dice for one in scans)
    plural = "s" * (len(scans) > 1)
    return Expectation(
        _range([f"{overlap:.2f}" for overlap in overlaps]),
        f"Volume {_range([f'{error:+.0f}' for error in errors])} % beside masks drawn by hand. "
        f"From {len(scans)} scan{plural} with volumes {load} that the training was watched on: a "
        f"validation, no test (bagau models {name}). Expect less on other scanners.",
    )


def _range(sorted_texts: Sequence[str]) -> str:
    first, last = sorted_texts[0], sorted_texts[-1]
    return first if first == last else f"{first} to {last}"


def _is_packaged(model: Model) -> bool:
    return model.name in MODELS and read_card(find_weights(model.name)).sha256 == model.sha256


def _judged(name: str) -> list[Judged]:
    """Return the scans of people with lesions that packaged weights were judged on."""
    return [
        Judged(row["dice"], row["result_ml"], row["reference_ml"])
        for row in read_card(find_weights(name)).validation
        if row["scan"].startswith(SUBJECT) and row.get("dice") is not None
    ]

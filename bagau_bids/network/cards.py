"""Which weights there are, what their cards say, and whether they are whole; without PyTorch.

Weights ``<name>.safetensors`` lie beside their card ``<name>.json``, which names the
architecture, its hyper-parameters and the SHA-256 of the file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec
from safetensors import SafetensorError, deserialize

from bagau_bids.errors import MissingResourceError
from bagau_bids.files import read_json

WMH, INFARCT, T1 = "wmh", "infarct", "t1"
KNOWN_INPUTS = ("flair", "atlas", T1)
DEFAULT_INPUTS = ("flair", "atlas")  # of a network whose card names none: BAGAU-Net
DEFAULT_OUTPUTS = (WMH,)
UNCALIBRATED = 0.5
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".tar")
WEIGHTS_FOLDER = "weights"
CARD_HINT = (
    "expected a card of weights as 'bagau train' writes it: copy it again, or take the version of "
    "bagau-bids that made it"
)

Probability = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class Calibration(msgspec.Struct, frozen=True):
    """Probabilities that inference moves to 0.5, of WMH and of infarct."""

    threshold: Probability = UNCALIBRATED
    infarct_threshold: Probability = UNCALIBRATED


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What the program reads of a card; a card holds more, for people.

    Attributes
    ----------
    architecture : str
        One of :data:`bagau_bids.network.weights.ARCHITECTURES`.
    config : dict
        Hyper-parameters of that architecture; ``outputs`` are what its channels are about.
    sha256 : str
        Of the file of weights.
    parameters : int
    version : str or None
    inputs : tuple of str
        Tensors that the network is given: some of ``flair``, ``atlas``, ``t1``.
    calibration : Calibration
    validation : list of dict
        Scores of the scans that the checkpoint was chosen by.
    content : dict
        All of the card, as it was read.
    """

    architecture: str
    config: dict[str, Any]
    sha256: str
    parameters: int = 0
    version: str | None = None
    inputs: tuple[str, ...] = DEFAULT_INPUTS
    calibration: Calibration = Calibration()
    validation: list[dict[str, Any]] = []
    content: dict[str, Any] = {}

    def __post_init__(self) -> None:
        """Refuse inputs and outputs that this version does not know."""
        if not self.inputs or len({*self.inputs} & {*KNOWN_INPUTS}) < len(self.inputs):
            raise ValueError(
                f"Expected some of {', '.join(KNOWN_INPUTS)}, each once, got "
                f"{', '.join(self.inputs) or 'none'} - at `$.inputs`"
            )
        stated = self.config.get("outputs", ())
        if not isinstance(stated, list | tuple) or not all(isinstance(n, str) for n in stated):
            raise ValueError(f"Expected a list of `str`, got {stated!r} - at `$.config.outputs`")
        if WMH not in self.outputs or not {WMH, INFARCT} >= set(self.outputs):
            raise ValueError(
                f"outputs {', '.join(self.outputs) or 'none'}, known are {WMH} alone, and {WMH} "
                f"and {INFARCT}"
            )

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the channels are about, in order: ``wmh``, and ``infarct`` where it tells those."""
        return tuple(self.config.get("outputs", DEFAULT_OUTPUTS))


@dataclass(frozen=True)
class Weights:
    """A file of weights and its card."""

    path: Path
    card: Card


@dataclass(frozen=True)
class Networks:
    """Weights of a run: those that find lesions, averaged if several, and the brain mask's."""

    lesions: tuple[Weights, ...]
    brain: Weights

    def take(self, name: str) -> bool:
        """Tell whether any network of the lesions is given an input of this name."""
        return any(name in weights.card.inputs for weights in self.lesions)

    def tell(self, name: str) -> bool:
        """Tell whether any network of the lesions has an output of this name."""
        return any(name in weights.card.outputs for weights in self.lesions)


def find_networks(paths: Sequence[Path], model: str) -> Networks:
    """Find the weights of a run and read their cards.

    Parameters
    ----------
    paths : sequence of Path
        A user's own weights of the lesions.
    model : str
        Name of the packaged ones, taken where there are none.

    Raises
    ------
    MissingResourceError
        If a file is missing, or a card cannot be understood.
    """
    lesions = tuple(paths) or (find_weights(model),)
    for path in lesions:
        require_weights(path)
    *found, brain = (Weights(path, read_card(path)) for path in (*lesions, find_weights("brain")))
    return Networks(tuple(found), brain)


def find_weights(name: str) -> Path:
    """Path of weights that ship with the package.

    Parameters
    ----------
    name : {'small', 'full', 'brain'}

    Raises
    ------
    MissingResourceError
        If they are not there.
    """
    path = Path(str(resources.files("bagau_bids.data"))) / WEIGHTS_FOLDER / f"{name}.safetensors"
    if path.is_file():
        return path
    raise MissingResourceError(
        f"{path}: the weights '{name}' should ship with the package and are missing; "
        "install bagau-bids again, or give '--weights PATH'"
    )


def require_weights(path: Path) -> None:
    """Refuse a path that is no file of weights, or one that might run code.

    Raises
    ------
    MissingResourceError
    """
    if not path.is_file():
        raise MissingResourceError(f"{path}: no such weights file; check --weights or --model")
    if path.suffix != ".safetensors":
        kind = "a pickled" if path.suffix in PICKLE_SUFFIXES else f"a '{path.suffix}'"
        raise MissingResourceError(
            f"{path}: {kind} weights file is not opened, because reading one may run code it "
            "holds; expected <name>.safetensors with its card <name>.json beside it, as "
            "'bagau train' writes them"
        )


def read_weights(path: Path, card: Card) -> bytes:
    """Read a file of weights that is whole and the one that its card describes.

    Parameters
    ----------
    path : Path
        ``<name>.safetensors``.
    card : Card
        Its card.

    Raises
    ------
    MissingResourceError
        If the file is missing, pickled, damaged, or another.
    """
    require_weights(path)
    content = path.read_bytes()
    try:
        deserialize(content)
    except SafetensorError as error:
        raise MissingResourceError(
            f"{path}: truncated or not a safetensors file ({len(content)} bytes: {error}); "
            "fetch or copy it again"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.sha256:
        raise MissingResourceError(
            f"{path}: its SHA-256 is {digest}, expected {card.sha256}; the file was changed or "
            "belongs to another card, fetch or copy both again"
        )
    return content


def read_card(path: Path) -> Card:
    """Read the card of a weights file.

    Parameters
    ----------
    path : Path
        ``<name>.safetensors``; the card is ``<name>.json`` beside it.

    Raises
    ------
    MissingResourceError
        If there is no card, or it is damaged or of another version.
    """
    card_path = path.with_suffix(".json")
    if not card_path.is_file():
        raise MissingResourceError(
            f"{card_path}: the card of {path.name} is missing; it names the architecture and "
            "the checksum, copy it beside the weights"
        )
    content = read_json(card_path, dict[str, Any], CARD_HINT, MissingResourceError)
    try:
        card = msgspec.convert(content, Card)
    except msgspec.ValidationError as error:
        raise MissingResourceError(f"{card_path}: {error}; {CARD_HINT}") from error
    return msgspec.structs.replace(card, content=content)

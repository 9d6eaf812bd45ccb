"""``bagau models``: list the packaged weights, or show and check a weights file."""

import json
from dataclasses import dataclass
from pathlib import Path

from bagau_bids.errors import EXIT_OK, MissingResourceError, UsageError
from bagau_bids.options import Exclusive, argument, option

PACKAGED = {
    "small": "lesions, a quarter of the width: the default",
    "full": "lesions, the paper's width",
    "stroke": "as small, and infarcts apart from them",
    "brain": "the brain mask",
}


SHOWN = Exclusive()


@dataclass(frozen=True)
class Options:
    """What the subcommand is told."""

    model: str | None = argument(
        f"one of {', '.join(PACKAGED)}, or the path of a .safetensors file; without it the "
        "packaged weights are listed",
        default=None,
        metavar="MODEL",
        nargs="?",
    )
    json: bool = option(False, "print the card as JSON, and nothing else", exclusive=SHOWN)
    path: bool = option(False, "print where the weights lie, and nothing else", exclusive=SHOWN)


def run(options: Options) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.network.cards import find_weights
    from bagau_bids.network.weights import load_weights

    if options.model is None:
        if options.path or options.json:
            raise UsageError(
                f"--path and --json say something of one model, expected its name as well, one of "
                f"{', '.join(PACKAGED)}, or the path of a .safetensors file"
            )
        for name, purpose in PACKAGED.items():
            print(f"{name:<8}{purpose:<45}{_state(name)}")
        return EXIT_OK
    path = find_weights(options.model) if options.model in PACKAGED else Path(options.model)
    card = load_weights(path).card
    if options.path:
        print(path)
        return EXIT_OK
    text = path.with_suffix(".md")
    if options.json or not text.is_file():
        print(json.dumps(card.content, indent=2))
        return EXIT_OK
    print(text.read_text(encoding="utf-8").rstrip())
    print(f"\n{path} is complete, its SHA-256 {card.sha256}")
    return EXIT_OK


def _state(name: str) -> str:
    """Size of packaged weights, or that this version has none."""
    from bagau_bids.network.cards import find_weights, read_card

    try:
        path = find_weights(name)
    except MissingResourceError:
        return "not part of this version"
    millions = read_card(path).parameters / 1e6
    return f"{millions:.2f} M parameters, {path.stat().st_size / 1e6:.1f} MB"

"""``bagau models``: list the packaged weights, or show and check a weights file."""

import argparse
import json
from pathlib import Path
from typing import Any

from bagau_bids.errors import EXIT_OK, MissingResourceError, UsageError

PACKAGED = {
    "small": "lesions, a quarter of the width: the default",
    "full": "lesions, the paper's width",
    "brain": "the brain mask",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand to its parser."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help=f"one of {', '.join(PACKAGED)}, or the path of a .safetensors file; without it the "
        "packaged weights are listed",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--json", action="store_true", help="print the card as JSON, and nothing else"
    )
    shown.add_argument(
        "--path", action="store_true", help="print where the weights lie, and nothing else"
    )


def run(args: argparse.Namespace) -> int:
    """Carry the subcommand out; return the exit code."""
    from bagau_bids.network.weights import find_weights, load_weights

    if args.model is None:
        if args.path or args.json:
            raise UsageError(
                f"--path and --json say something of one model, expected its name as well, one of "
                f"{', '.join(PACKAGED)}, or the path of a .safetensors file"
            )
        for name, purpose in PACKAGED.items():
            print(f"{name:<8}{purpose:<42}{_state(name)}")
        return EXIT_OK
    path = find_weights(args.model) if args.model in PACKAGED else Path(args.model)
    _, card = load_weights(path)
    if args.path:
        print(path)
        return EXIT_OK
    text = path.with_suffix(".md")
    if args.json or not text.is_file():
        print(json.dumps(card, indent=2))
        return EXIT_OK
    print(text.read_text(encoding="utf-8").rstrip())
    print(f"\n{path} is complete, its SHA-256 {card['sha256']}")
    return EXIT_OK


def _state(name: str) -> str:
    """Size of packaged weights, or that this version has none."""
    from bagau_bids.network.weights import find_weights, read_card

    try:
        path = find_weights(name)
    except MissingResourceError:
        return "not part of this version"
    card: dict[str, Any] = read_card(path)
    millions = card["parameters"] / 1e6
    return f"{millions:.2f} M parameters, {path.stat().st_size / 1e6:.1f} MB"

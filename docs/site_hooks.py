"""MkDocs hooks: the parts of pages that follow from the code, so that they cannot differ from it.

A paragraph that is nothing but a link to a file of the package is replaced: by the options of the
parser, the names of outputs, the columns of a table, or the references. Read without a build, on
a code host, the same paragraph leads to the file. ``[@key]`` cites an entry of the bibliography,
and ``doi:10...`` becomes a link.
"""

import argparse
import html
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from mkdocs.exceptions import PluginError

from bagau_bids.bids.derivatives import catalogue
from bagau_bids.bids.tables import column_descriptions
from bagau_bids.cli import toolbox
from bagau_bids.cli.parser import build_parser
from bagau_bids.options import CommandParser
from bagau_bids.reports.methods import render_methods

_DATA = files("bagau_bids.data")
_PLACE = re.compile(r"^\[[^\]]+\]\(\.\./bagau_bids/([\w./-]+)\)$", re.MULTILINE)
_CITATION = re.compile(r"\[(@\w+(?:;\s+@\w+)*)\]")
_DOI = re.compile(r"(?<![\w/`\[])doi:(10\.\d{4,}/[\w.;()/-]*\w)")
_FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the generated parts of a page, and link what it cites."""
    markdown = _with_references(_PLACE.sub(lambda found: _generated(found[1]), markdown))
    parts = _FENCED.split(markdown)
    return "".join(part if part.startswith("```") else _link_dois(part) for part in parts)


def _generated(source: str) -> str:
    makers: dict[str, Callable[[], str]] = {
        "cli/parser.py": lambda: options_markdown(build_parser()),
        "cli/toolbox.py": toolbox_markdown,
        "data/derivatives.json": names_markdown,
        "data/citation/references.bib": lambda: "[references]",
    }
    if source in makers:
        return makers[source]()
    path = PurePosixPath(source)
    if path.parent == PurePosixPath("data/tables"):
        return columns_markdown(path.stem)
    raise PluginError(f"{source}: nothing is made from this file; expected one of {list(makers)}")


def options_markdown(parser: argparse.ArgumentParser, level: int = 3) -> str:
    """Tables of the arguments of a parser, one for each of its groups."""
    # argparse has no public way to list arguments; these names are those that its own help uses.
    formatter = parser._get_formatter()
    parts = [f"```text\n{parser.format_usage().strip()}\n```"]
    for group in parser._action_groups:
        rows = [
            (_spellings(formatter, action), _meaning(formatter, action))
            for action in group._group_actions
            if action.help is not argparse.SUPPRESS and not isinstance(action, _SUBPARSERS)
        ]
        if rows:
            title = "Arguments" if group.title == "positional arguments" else group.title
            parts.append(f"{'#' * level} {title[0].upper()}{title[1:]}")
            parts.append(_table(("argument", "meaning"), rows))
    for action in parser._actions:
        if isinstance(action, _SUBPARSERS):
            for name, child in action.choices.items():
                parts.append(f"{'#' * level} {parser.prog} {name}\n\n{_text(child.description)}")
                parts.append(options_markdown(child, level + 1))
    return "\n\n".join(parts)


_SUBPARSERS = argparse._SubParsersAction


def _spellings(formatter: argparse.HelpFormatter, action: argparse.Action) -> str:
    return ", ".join(f"`{one}`" for one in formatter._format_action_invocation(action).split(", "))


def _meaning(formatter: argparse.HelpFormatter, action: argparse.Action) -> str:
    meaning = _text(formatter._expand_help(action)) if action.help else ""
    if action.required and action.option_strings:
        return f"{meaning} (required)"
    unsaid = (
        action.default not in (None, argparse.SUPPRESS, False, []) and "default" not in meaning
    )
    return (
        f"{meaning} (default: {action.default})".strip() if unsaid and action.choices else meaning
    )


def toolbox_markdown() -> str:
    """Tables of the arguments of each subcommand of ``bagau``."""
    parts = []
    for name, purpose in toolbox.SUBCOMMANDS.items():
        parser = CommandParser(prog=f"bagau {name}")
        toolbox.add_arguments(parser, toolbox.load_subcommand(name))
        parts.append(f"## bagau {name}\n\n{_text(purpose[0].upper() + purpose[1:])}.")
        parts.append(options_markdown(parser))
        for (base, option), module in toolbox.VARIANTS.items():
            if base == name:
                parser = CommandParser(prog=f"bagau {name}")
                toolbox.add_arguments(parser, toolbox.load_subcommand(module))
                parts.append(f"## bagau {name} {option}\n\n{options_markdown(parser)}")
    return "\n\n".join(parts)


def names_markdown() -> str:
    """Tables of every file name that ``data/derivatives.json`` knows, with what the file holds."""
    parts = []
    for title, kind in (
        ("For each FLAIR", catalogue().files),
        ("For the group", catalogue().group),
    ):
        rows = []
        for made in kind.values():
            name = made.name.format(source="sub-01", template="<template>")
            folder = f"sub-01/{made.folder}/" if made.folder else ""
            rows.append((f"`{folder}{name}`", _text(made.description)))
        parts += [f"### {title}", _table(("file", "what it holds"), rows)]
    return "\n\n".join(parts)


def columns_markdown(table: str) -> str:
    """Table of the columns of one table, as its JSON sidecar describes them."""
    rows = []
    for name, about in column_descriptions(table).items():
        levels = "; ".join(
            f"`{level}`: {_text(meaning.removesuffix('.'))}"
            for level, meaning in about.levels.items()
        )
        meaning = " ".join(part for part in (_text(about.description), levels) if part)
        rows.append((f"`{name}`", meaning, _text(about.units)))
    return _table(("column", "meaning", "unit"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in lines
    )


def _text(text: str) -> str:
    """Plain text as Markdown that shows it as it is."""
    escaped = re.sub(r"([\\*_\[\]`])", r"\\\1", html.escape(text, quote=False))
    return " ".join(escaped.split())


def _with_references(markdown: str) -> str:
    """Turn citations into numbers, and list their references where the page asks for it."""
    keys = list(dict.fromkeys(re.findall(r"@(\w+)", " ".join(_CITATION.findall(markdown)))))
    if not keys:
        return markdown
    bibliography = (_DATA / "citation" / "references.bib").read_text(encoding="utf-8")
    references = render_methods(
        f"[{'; '.join(f'@{key}' for key in keys)}]", bibliography
    ).references
    if len(references) != len(keys):
        raise PluginError(f"references.bib does not have all of {', '.join(keys)}")
    lines = [
        f'<li id="reference-{number}">{text}</li>' for number, text in enumerate(references, 1)
    ]
    markdown = markdown.replace("[references]", "\n".join(["<ol>", *lines, "</ol>"]))

    def numbers(found: re.Match[str]) -> str:
        cited = (keys.index(key) + 1 for key in re.findall(r"@(\w+)", found[1]))
        return (
            "["
            + ", ".join(f'<a href="#reference-{number}">{number}</a>' for number in cited)
            + "]"
        )

    return _CITATION.sub(numbers, markdown)


def _link_dois(text: str) -> str:
    lines = text.split("\n")
    return "\n".join(
        line if line.startswith("<li") else _DOI.sub(r"[doi:\1](https://doi.org/\1)", line)
        for line in lines
    )

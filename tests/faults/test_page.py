"""docs/faults.md says what is so: its tests exist, and its words are those of the program."""

import ast
import re

import pytest

CODES = {"", "0", "1", "2", "70", "127", "130", "137", "143"}
HEADER = ["fault", "what happens", "words", "code", "test"]


def rows(repository):
    text = (repository / "docs" / "faults.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| ") and len(cells) == len(HEADER) and cells != HEADER:
            yield cells


def program_words(repository):
    """All text of the package, the pieces of each literal joined as Python joins them."""
    texts = []
    for path in sorted((repository / "bagau_bids").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        texts.append(re.sub(r'"\s*\n\s*f?"', "", source))
    limits = repository / "bagau_bids" / "data" / "quality_limits.json"
    texts.append(limits.read_text(encoding="utf-8"))  # the words of the flags
    return " ".join("\n".join(texts).split())


def test_every_row_is_whole(repository):
    found = list(rows(repository))
    lines = (repository / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    with_test = [line for line in lines if ".py::" in line]
    assert len(found) == len(with_test)
    assert {code for *_, code, _ in found} <= CODES
    assert all(fault and happens for fault, happens, *_ in found)


def test_every_row_names_a_test_that_exists(repository):
    for *_, named in rows(repository):
        for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", named) or pytest.fail(named):
            tree = ast.parse((repository / "tests" / file).read_text(encoding="utf-8"))
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in names, f"{file}::{name}"


def test_every_word_is_one_the_program_says(repository):
    said = program_words(repository)
    for fault, _, words, *_ in rows(repository):
        for quoted in re.findall(r"`([^`]+)`", words):
            for piece in quoted.split("…"):
                assert piece.strip() in said, f"{fault}: {piece.strip()}"

"""The Boutiques descriptor says what the program takes, in its own words."""

import json
from pathlib import Path

import pytest
from boutiques import bosh

from bagau_bids import __version__
from bagau_bids.cli.parser import build_parser

DESCRIPTOR = Path(__file__).resolve().parents[2] / "bagau-bids.boutiques.json"


@pytest.fixture(scope="module")
def descriptor():
    return json.loads(DESCRIPTOR.read_text(encoding="utf-8"))


def test_bosh_accepts_it():
    bosh(["validate", str(DESCRIPTOR)])  # raises where it does not


def test_version_is_that_of_the_package(descriptor):
    assert descriptor["tool-version"] == __version__


def test_every_input_is_an_option_with_these_choices_and_default(descriptor):
    actions = {name: one for one in build_parser()._actions for name in one.option_strings}
    for given in descriptor["inputs"]:
        if "command-line-flag" not in given:
            assert not given["optional"]
            continue
        action = actions[given["command-line-flag"]]
        assert (action.nargs == 0) == (given["type"] == "Flag"), given["id"]
        assert (action.nargs == "+") == given.get("list", False), given["id"]
        if action.choices:
            assert [*action.choices] == given["value-choices"], given["id"]
        if "default-value" in given:
            assert action.default == given["default-value"], given["id"]


def test_the_command_line_is_read_by_the_parser(descriptor, tmp_path):
    line = descriptor["command-line"]
    for given in descriptor["inputs"]:
        example = (
            "16G"
            if given["id"] == "mem"
            else str(given.get("default-value", (given.get("value-choices") or ["1"])[0]))
        )
        if given["id"] in ("bids_dir", "output_dir", "work_dir", "templateflow_home", "weights"):
            example = str(tmp_path)
        words = "" if given["type"] == "Flag" else example
        flag = given.get("command-line-flag", "")
        line = line.replace(given["value-key"], f"{flag} {words}".strip())
    program, *arguments = line.split()
    assert program == "bagau-bids"
    read = build_parser().parse_args(arguments)
    assert read.model == "small"
    assert read.tta

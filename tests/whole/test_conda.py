"""The conda recipe asks for what the package asks for."""

import re
import tomllib
from pathlib import Path

import yaml

import bagau_bids

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = {"torch": "pytorch"}  # on conda-forge


def recipe():
    text = (REPOSITORY / "conda" / "meta.yaml").read_text(encoding="utf-8")
    (version,) = re.findall(r'set version = "(.*?)"', text)
    text = re.sub(r"{%.*?%}\n", "", text).replace("{{ version }}", version)
    return yaml.safe_load(text.replace("{{ PYTHON }}", "python"))


def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_version_and_commands_are_those_of_the_package():
    assert recipe()["package"] == {"name": "bagau-bids", "version": bagau_bids.__version__}
    expected = {f"{name} = {target}" for name, target in project()["scripts"].items()}
    assert set(recipe()["build"]["entry_points"]) == expected


def test_requirements_are_those_of_the_package():
    asked = [re.fullmatch(r"([\w-]+)(.*)", one).groups() for one in project()["dependencies"]]
    expected = {f"{NAMES.get(name, name)} {bounds}".strip() for name, bounds in asked}
    python = f"python {project()['requires-python']}"
    assert set(recipe()["requirements"]["run"]) == {python, *expected}

"""The site that `make docs` builds: complete, without the network, and true to the code."""

import importlib.util
import json
import re

import pytest

from bagau_bids.bids.derivatives import catalogue
from bagau_bids.cli import parser, toolbox


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory):
    """Built anew; a warning, such as a dead link or anchor, is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(repository / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.fixture(scope="module")
def hooks(repository):
    specification = importlib.util.spec_from_file_location(
        "site_hooks", repository / "docs" / "site_hooks.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def words_of(page):
    text = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
    return set(re.findall(r"[\w.-]+", text.replace("&lt;", "<").replace("&gt;", ">")))


def test_no_page_loads_anything_from_elsewhere(site):
    pages = list(site.glob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"([^\"]+)\"", text)
        assert [one for one in loaded if "//" in one] == [], page.name
        for one in loaded:
            if page.name != "404.html":  # of a server, with addresses from its root
                assert (site / one.split("?")[0]).is_file(), (page.name, one)
    for style in site.rglob("*.css"):
        addresses = re.findall(r"url\(['\"]?([^)'\"]+)", style.read_text(encoding="utf-8"))
        assert [one for one in addresses if one.startswith(("http", "//"))] == [], style.name


def test_no_python_of_the_build_is_published(site):
    assert list(site.rglob("*.py")) == []


def test_options_page_has_every_option(site, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # else lines break within options
    words = words_of(site / "options.html")
    texts = [parser.build_parser().format_help()]
    for name in toolbox.SUBCOMMANDS:
        built = toolbox.build_parser(name, toolbox.load_subcommand(name))
        choices = next(a.choices for a in built._actions if a.dest == "subcommand")
        texts.append(choices[name].format_help())
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", "\n".join(texts)))
    assert len(options) > 80
    assert {option for option in options if "_" not in option} - words == set()


def test_outputs_page_has_every_name(site):
    text = (site / "outputs.html").read_text(encoding="utf-8")
    for made in (*catalogue().files.values(), *catalogue().group.values()):
        name = made.name.format(source="sub-01", template="&lt;template&gt;")
        assert f"{name}</code>" in text


def test_every_table_is_described_with_its_columns(repository, site):
    words = set.union(*(words_of(page) for page in site.glob("*.html")))
    shown = "\n".join(page.read_text("utf-8") for page in (repository / "docs").glob("*.md"))
    for path in (repository / "bagau_bids" / "data" / "tables").glob("*.json"):
        assert f"(../bagau_bids/data/tables/{path.name})" in shown, (
            f"say where {path.name} belongs, in docs/outputs.md or another page, by a link to it"
        )
        assert set(json.loads(path.read_text(encoding="utf-8"))) - words == set()


def test_a_file_that_nothing_is_made_from_is_refused(hooks):
    with pytest.raises(hooks.PluginError, match=r"config\.py: nothing is made from this file"):
        hooks.on_page_markdown("[Defaults](../bagau_bids/config.py)")


def test_nothing_of_the_sources_is_left_unfilled(site):
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "[@" not in text, page.name
        assert "../bagau_bids/" not in text, page.name


def test_citations_are_numbered_and_listed_once(hooks):
    made = hooks.on_page_markdown(
        "By [@n4] and [@bids;\n@n4].\n\n[All](../bagau_bids/data/citation/references.bib)"
    )
    assert '[<a href="#reference-1">1</a>]' in made
    assert '[<a href="#reference-2">2</a>, <a href="#reference-1">1</a>]' in made
    assert made.count("<li") == 2
    assert "10.1109/TMI.2010.2046908" in made


def test_a_citation_that_the_bibliography_lacks_is_refused(hooks):
    with pytest.raises(hooks.PluginError, match="does not have all of nobody2026"):
        hooks.on_page_markdown("See [@nobody2026].")


def test_dois_become_links_but_not_in_commands(hooks):
    made = hooks.on_page_markdown(
        "(doi:10.1161/01.STR.68589.f2).\n\n```console\nx doi:10.1/2\n```"
    )
    assert "([doi:10.1161/01.STR.68589.f2](https://doi.org/10.1161/01.STR.68589.f2))." in made
    assert "x doi:10.1/2" in made


def test_text_of_the_code_is_shown_as_it_is(hooks):
    assert hooks._text("a*b_c [x] <y>") == r"a\*b\_c \[x\] &lt;y&gt;"

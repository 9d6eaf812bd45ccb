"""The methods text and its references as HTML.

``logs/CITATION.md`` is Markdown with citations in brackets (``[@key; @key]``), and
``logs/CITATION.bib`` BibTeX.
"""

import html
import re
from dataclasses import dataclass
from functools import cache

from bibtexparser.bparser import BibTexParser
from bibtexparser.customization import convert_to_unicode
from markdown_it import MarkdownIt

_CITATION = re.compile(r"\[(@[\w:-]+(?:;\s*@[\w:-]+)*)\]")


@dataclass(frozen=True)
class Methods:
    """A methods text with numbered citations, and its references.

    Parameters
    ----------
    text : str
        As HTML.
    references : tuple of str
        In order of appearance, as HTML.
    plain : str
        Text and numbered references without any markup.
    bibtex : str
        The entries of those references.
    """

    text: str
    references: tuple[str, ...]
    plain: str
    bibtex: str


@cache
def render_methods(markdown: str, bibtex: str) -> Methods:
    """Turn the methods text into HTML with numbered references.

    The result is remembered: all pages of a run have it, and BibTeX takes long to read.

    Parameters
    ----------
    markdown : str
        Content of ``CITATION.md``; its first-level heading, and what follows a line of three
        dashes, are left out.
    bibtex : str
        Content of ``CITATION.bib``. A citation without an entry keeps its key.
    """
    tex = BibTexParser(ignore_nonstandard_types=False, customization=convert_to_unicode)
    entries = tex.parse(bibtex).entries_dict
    numbers: dict[str, int] = {}

    def cite(match: re.Match[str]) -> str:
        found = []
        for key in re.findall(r"@([\w:-]+)", match[1]):
            if key in entries:
                number = numbers.setdefault(key, len(numbers) + 1)
                found.append(f'<a href="#reference-{number}">{number}</a>')
            else:
                found.append(key)
        return f"[{', '.join(found)}]"

    body = re.sub(r"^# .*", "", re.split(r"^---$", markdown, flags=re.M)[0], flags=re.M)
    reader = MarkdownIt("commonmark", {"html": False})
    reader.add_render_rule("softbreak", lambda *_: " ")
    text = _CITATION.sub(cite, reader.render(body).strip())
    references = tuple(_reference(entries[key]) for key in numbers)
    listed = [f"{number}. {reference}" for number, reference in enumerate(references, start=1)]
    sources = (re.search(rf"^@\w+{{{key},.*?^}}", bibtex, re.S | re.M) for key in numbers)
    return Methods(
        text,
        references,
        plain=_without_tags("\n\n".join([text.replace("\n", "\n\n"), *listed])),
        bibtex="\n\n".join(source[0] for source in sources if source),
    )


def _without_tags(text: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def _reference(entry: dict[str, str]) -> str:
    """One reference: authors, title, where, year, and a link to its DOI or address."""
    fields = {name: html.escape(_plain(value), quote=False) for name, value in entry.items()}
    where = fields.get("journal") or fields.get("booktitle") or fields.get("publisher") or ""
    volume = f" {fields['volume']}" if "volume" in fields else ""
    pages = f":{fields['pages']}" if "pages" in fields else ""
    year = f" ({fields['year']})" if "year" in fields else ""
    parts = [_authors(fields.get("author", "")), fields.get("title", "")]
    parts.append(f"<em>{where}</em>{volume}{pages}{year}" if where else fields.get("year", ""))
    parts.append(fields.get("note", ""))
    text = ". ".join(part.removesuffix(".") for part in parts if part)
    if "doi" in fields:
        text += f'. <a href="https://doi.org/{fields["doi"]}">doi:{fields["doi"]}</a>'
    elif "url" in fields:
        text += f'. <a href="{fields["url"]}">{fields["url"]}</a>'
    return text


def _authors(field: str) -> str:
    names = [name.strip() for name in field.split(" and ") if name.strip()]
    others = "others" in names
    names = [name for name in names if name != "others"]
    if len(names) > 3 or others:
        return f"{names[0]} et al." if names else ""
    return "; ".join(names)


def _plain(value: str) -> str:
    """Take TeX's braces away and make dashes of double hyphens."""
    return value.replace("{", "").replace("}", "").replace("--", "–").replace("\\&", "&")

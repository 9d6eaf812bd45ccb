"""The methods text and its references as HTML: a small part of Markdown and of BibTeX.

Only what ``logs/CITATION.md`` and ``logs/CITATION.bib`` use is understood: headings,
paragraphs, emphasis, code, and citations in brackets (``[@key; @key]``).
"""

import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

_ACCENTS = {'"': "\u0308", "^": "\u0302", "'": "\u0301", "`": "\u0300", "~": "\u0303"}
_ACCENTS |= {"c": "\u0327", "u": "\u0306", "v": "\u030c"}
_ENTRY = re.compile(r"@\w+\{([^,\s]+),(.*?)\n\}", re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*[{\"](.*?)[}\"],?\s*$", re.MULTILINE)
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


def render_methods(markdown: str, bibtex: str) -> Methods:
    """Turn the methods text into HTML with numbered references.

    Parameters
    ----------
    markdown : str
        Content of ``CITATION.md``; its first-level heading, and what follows a line of three
        dashes, are left out.
    bibtex : str
        Content of ``CITATION.bib``. A citation without an entry keeps its key.
    """
    found_entries = {match[1]: match for match in _ENTRY.finditer(bibtex)}
    entries = {key: dict(_FIELD.findall(match[2])) for key, match in found_entries.items()}
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

    body = re.split(r"^---$", markdown, flags=re.MULTILINE)[0]
    blocks = [_block(block, cite) for block in re.split(r"\n\s*\n", body.strip())]
    text = "\n".join(block for block in blocks if block)
    references = tuple(_reference(entries[key]) for key in numbers)
    listed = [f"{number}. {reference}" for number, reference in enumerate(references, start=1)]
    return Methods(
        text,
        references,
        plain=_without_tags("\n\n".join([text.replace("\n", "\n\n"), *listed])),
        bibtex="\n\n".join(found_entries[key][0] for key in numbers),
    )


def _without_tags(text: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def _block(block: str, cite: Callable[[re.Match[str]], str]) -> str:
    if block.startswith("# "):
        return ""
    safe = html.escape(" ".join(block.split()), quote=False)
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    safe = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", safe)
    safe = _CITATION.sub(cite, safe)
    if safe.startswith("## "):
        return f"<h3>{safe[3:]}</h3>"
    return f"<p>{safe}</p>"


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
    """Take TeX accents and braces away and make dashes of double hyphens."""

    def accent(match: re.Match[str]) -> str:
        return unicodedata.normalize("NFC", match[2] + _ACCENTS[match[1]])

    value = value.replace("\\ss", "ß")
    value = re.sub(r"\\([\"^'`~cuv])\s*\{?(\w)\}?", accent, value)
    return value.replace("{", "").replace("}", "").replace("--", "–").replace("\\&", "&")

"""Methods text and references as HTML."""

from bagau_bids.bids.description import citation_text, write_citation
from bagau_bids.config import Processing
from bagau_bids.reports.methods import render_methods

BIBTEX = r"""
@article{one,
  author = {Gro{\ss}, Jos{\'e} and M{\"u}ller, Ann and Third, A. and Fourth, B.},
  title = {{MRI} of <heads> \& brains},
  journal = {Journal},
  volume = {7},
  pages = {1--9},
  year = {2020},
  doi = {10.1/abc}
}

@misc{two,
  author = {Solo, S.},
  title = {Software},
  url = {https://example.org/x},
  year = {2021}
}
"""


def test_citations_are_numbered_in_order_of_appearance():
    text = "# Methods\n\nFirst *this* [@two], then `that` [@one; @two] & <more>.\n\nSee [@none].\n"
    text += "\n---\n\nNot this.\n"
    methods = render_methods(text, BIBTEX)
    assert methods.text == (
        '<p>First <em>this</em> [<a href="#reference-1">1</a>], then <code>that</code> '
        '[<a href="#reference-2">2</a>, <a href="#reference-1">1</a>] &amp; &lt;more&gt;.</p>\n'
        "<p>See [none].</p>"
    )
    assert methods.references == (
        'Solo, S. Software. 2021. <a href="https://example.org/x">https://example.org/x</a>',
        "Groß, José et al. MRI of &lt;heads&gt; &amp; brains. <em>Journal</em> 7:1–9 (2020). "
        '<a href="https://doi.org/10.1/abc">doi:10.1/abc</a>',
    )


def test_text_to_paste_has_no_markup_and_only_the_references_it_cites():
    unused = "@misc{unused,\n  title = {Nobody cites this},\n  year = {1999}\n}\n"
    methods = render_methods("# Methods\n\nOne & *two* [@one].\n\nMore.\n", BIBTEX + unused)
    assert methods.plain == (
        "One & two [1].\n\nMore.\n\n1. Groß, José et al. MRI of <heads> & brains. "
        "Journal 7:1–9 (2020). doi:10.1/abc"
    )
    assert methods.bibtex == BIBTEX.strip().split("\n\n")[0]


def test_every_citation_of_the_real_text_has_a_reference(tmp_path):
    write_citation(tmp_path, Processing())
    bibtex = (tmp_path / "logs" / "CITATION.bib").read_text(encoding="utf-8")
    methods = render_methods(citation_text(Processing()), bibtex)
    assert "@" not in methods.text
    assert len(methods.references) >= 8
    assert all("{" not in reference and "\\" not in reference for reference in methods.references)

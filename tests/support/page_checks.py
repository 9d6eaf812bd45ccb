"""Reading a page that the program wrote."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Checks that tags are balanced; gathers ids, links, pictures and text."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, path):
        super().__init__()
        self.open, self.ids, self.links, self.pictures, self.text = [], [], [], [], ""
        self.alternatives = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag in ("a", "link"):
            self.links.append(attributes["href"])
        if tag == "img":
            self.pictures.append(attributes["src"])
            self.alternatives.append(attributes.get("alt"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th", "dt", "dd", "li"):
            self.text += " "

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

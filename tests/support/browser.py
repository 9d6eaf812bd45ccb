"""Opening pages in a headless Chromium, and noticing everything that goes wrong there."""

import shutil
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTH = 1280


def find_chromium():
    """Path of an installed Chromium or Chrome, None without one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def started_browser():
    """A running browser; skips the test where there is none."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


class OpenedPage:
    """A page opened from its file, without a network, and what it complained about."""

    def __init__(self, context, path):
        self.path = path
        self.outside, self.complaints = [], []
        self.page = context.new_page()
        self.page.set_viewport_size({"width": WIDTH, "height": 900})
        self.page.on("request", self._note_request)
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri(), wait_until="load")

    def _note_request(self, request):
        if urlsplit(request.url).scheme not in ("file", "data", "blob"):
            self.outside.append(request.url)

    def _note_message(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def broken_pictures(self):
        """Pictures, also those of SVG, that could not be decoded."""
        return self.page.evaluate(
            """async () => {
              const broken = [];
              const sources = [...document.images].map((image) => image.src).concat(
                [...document.querySelectorAll("svg image[href]")].map((i) => i.href.baseVal));
              for (const source of sources) {
                const image = new Image();
                image.src = source;
                await image.decode().catch(() => broken.push(source.slice(0, 100)));
                if (!image.naturalWidth) broken.push(source.slice(0, 100));
              }
              return broken;
            }"""
        )

    def overflow(self):
        """Pixels by which the page is wider than its window."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    def overflows(self, widths):
        """As `overflow`, for windows of other widths; those that hold the page are left out."""
        found = {}
        for width in widths:
            self.page.set_viewport_size({"width": width, "height": 900})
            if pixels := self.overflow():
                found[width] = pixels
        return found

    def dead_links(self):
        """Links that lead to no element, or to no file; those to other sites are not followed."""
        links = self.page.eval_on_selector_all(
            "a", "all => all.map((a) => a.getAttribute('href'))"
        )
        return [link for link in links if not self._leads_somewhere(link)]

    def _leads_somewhere(self, link):
        parts = urlsplit(link)
        if parts.scheme:
            return parts.scheme == "https"
        target = self.path.parent / unquote(parts.path) if parts.path else self.path
        if not target.exists():
            return False
        return not parts.fragment or f'id="{parts.fragment}"' in target.read_text("utf-8")

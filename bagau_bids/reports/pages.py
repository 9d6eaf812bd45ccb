"""What all pages share: templates, pictures with layers to be switched, one file to be mailed."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from bagau_bids import __version__
from bagau_bids.reports import figures

SLICE_QUALITY = 88  # of 100; the picture files beside a page lose nothing


@dataclass(frozen=True)
class View:
    """One way to look at a picture: the layers shown over its slices."""

    name: str
    layer: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of the page: slices or a chart, and layers to be switched.

    Parameters
    ----------
    anchor, title, caption : str
    files : tuple of str
        Links to the same pictures in files of their own.
    base : str
        Data URI of the picture itself.
    views : tuple of View
        With several, one is shown at a time.
    other : View or None
        Another picture of the same slices, to be compared with the base by flicker and slider.
    base_name : str
        What the base shows, where there is another.
    legend : tuple of (str, str)
        Colours and what they mean.
    """

    anchor: str
    title: str
    caption: str
    files: tuple[str, ...]
    base: str
    views: tuple[View, ...] = ()
    other: View | None = None
    base_name: str = ""
    legend: tuple[tuple[str, str], ...] = ()

    @property
    def bytes(self) -> int:
        """Size in the page; what lies over two pictures is there twice."""
        layers = sum(len(view.layer) for view in self.views)
        other = 0 if self.other is None else layers + len(self.other.layer)
        return len(self.base) + layers + other


@dataclass(frozen=True)
class Layer:
    """A transparent picture over slices, with the name of its file and of its view."""

    name: str
    view: str
    picture: Image.Image


def embed(
    names: tuple[str, str, str],
    base: Image.Image,
    layers: Sequence[Layer] = (),
    *,
    without: str = "",
    saved: Sequence[str] = (),
) -> Picture:
    """Prepare a picture for a page, with all that it shows inside.

    Parameters
    ----------
    names : tuple of str
        Anchor, title and caption.
    base : Image
        The slices, or a chart.
    layers : sequence of Layer
        Shown over it, one at a time, the first at first.
    without : str
        Name of the view that shows the base alone; none where it is empty.
    saved : sequence of str
        Links to the same pictures in files of their own.
    """
    views = [View(layer.view, _data_uri(layer.picture)) for layer in layers]
    if without and views:
        views.append(View(without))
    return Picture(*names, tuple(saved), _data_uri(base), tuple(views))


def embed_pair(
    names: tuple[str, str, str],
    first: tuple[str, Image.Image],
    second: tuple[str, Image.Image],
    *,
    overlay: Layer | None = None,
    saved: Sequence[str] = (),
) -> Picture:
    """Prepare two pictures of the same slices that are to be compared.

    Parameters
    ----------
    names : tuple of str
        Anchor, title and caption.
    first, second : tuple of (str, Image)
        What each is, and the picture.
    overlay : Layer or None
        Drawn over both.
    saved : sequence of str
        Links to the same pictures in files of their own.
    """
    views = () if overlay is None else (View(overlay.view, _data_uri(overlay.picture)),)
    return Picture(
        *names,
        tuple(saved),
        _data_uri(first[1]),
        views,
        other=View(second[0], _data_uri(second[1])),
        base_name=first[0],
    )


def render(template: str, **content: Any) -> str:
    """Fill a template of ``data/reports``; style, script and version are there already."""
    shared = {"style": _text("report.css"), "script": _text("participant.js")}
    known = {name: Markup(text) for name, text in shared.items()}
    return _environment().get_template(template).render(**known, version=__version__, **content)


def _data_uri(picture: Image.Image) -> str:
    """Picture as text: slices as WebP, at a third of the size; charts and layers as PNG."""
    if picture.mode == "L":
        buffer = io.BytesIO()
        picture.save(buffer, format="WEBP", quality=SLICE_QUALITY, method=4)
        kind, content = "webp", buffer.getvalue()
    else:
        kind, content = "png", figures.png_bytes(picture)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _text(name: str) -> str:
    return files("bagau_bids.data").joinpath("reports", name).read_text(encoding="utf-8")

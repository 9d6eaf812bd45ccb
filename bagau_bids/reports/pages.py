"""What all pages share: templates, pictures with layers to be switched, one file to be mailed."""

import base64
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


@dataclass(frozen=True)
class View:
    """One way to look at a picture: the layers shown over its slices."""

    name: str
    layer: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of the page: slices or a chart, and layers to be switched."""

    anchor: str
    title: str
    caption: str
    files: tuple[str, ...]
    base: str
    views: tuple[View, ...] = ()


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


def render(template: str, **content: Any) -> str:
    """Fill a template of ``data/reports``; the style and the version are there already."""
    style = Markup(_text("report.css"))
    return (
        _environment().get_template(template).render(style=style, version=__version__, **content)
    )


def _data_uri(picture: Image.Image) -> str:
    content = base64.b64encode(figures.png_bytes(picture)).decode("ascii")
    return f"data:image/png;base64,{content}"


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

"""Pictures of one scan for its page: lesions, brain mask, before and after, registration."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from bagau_bids import spaces
from bagau_bids.files import write_bytes
from bagau_bids.measures.regions import (
    COLOURS,
    REGIONS,
    SIDES,
    region_number,
    regions_of_rule,
)
from bagau_bids.measures.suspects import FIGURES, Suspect
from bagau_bids.processes import both
from bagau_bids.reports import figures
from bagau_bids.reports.pages import Layer, Picture, embed, embed_pair
from bagau_bids.reports.results import ScanResults, load_image, load_image_on

BRAIN_COLOUR = "#2fb8ff"
ATLAS_COLOUR = "#ff9f1c"
WMH_COLOUR = "#ff2d2d"
VENTRICLE_COLOUR = "#ffe66d"
# What is no WMH and is outlined with them, where it is there: colour and name. Red, blue and light
# green stay apart for the colour-blind.
OTHER_OUTLINES = {
    "infarct_mask": ("#35d0ff", "infarct"),
    "known_lesion_mask": ("#b8ff3c", "known lesion (given as a mask)"),
}
# Where they came from, as recorded.
VENTRICLE_WORDS = {
    "flair": "the lateral ventricles, outlined on the FLAIR itself",
    "template": "the lateral ventricles of the registered template, since CSF could not be told "
    "from tissue on this FLAIR",
}
SUSPECT_COLOUR = "#c77dff"
LESION_SLICES = 24
THUMBNAIL_SIZE = 120, 150
THUMBNAIL_QUALITY = 75  # of 100
KEY_SIZE = 740, 480  # pixels of the picture beside the key figures, as it is shown
SUSPECT_SLICES = 6
OTHER_PLANE_SLICES = 12
OVERVIEW_COLUMNS = 7
REGION_OPACITY = 0.75


@dataclass(frozen=True)
class Shown:
    """A scan's images, in RAS order, that several pictures share.

    Parameters
    ----------
    scan : ScanResults
    flair : spaces.Image
        Bias corrected.
    brain : (X, Y, Z) bool array
    window : tuple of float
        Values of the FLAIR shown black and white.
    """

    scan: ScanResults
    flair: spaces.Image
    brain: np.ndarray
    window: tuple[float, float]

    def has(self, *names: str) -> bool:
        """Tell whether derivatives are there."""
        return all(self.scan.path(name).is_file() for name in names)

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions that were told apart; all there can be where it is not known."""
        regions = self.scan.steps.regions
        return regions_of_rule(regions.rule) if regions else REGIONS

    def load(self, name: str) -> np.ndarray:
        """Load an image that must lie on the FLAIR's grid."""
        return load_image_on(self.scan.path(name), self.flair)

    def layout(
        self, strips: Sequence[tuple[int, Sequence[int]]], region: np.ndarray, columns: int
    ) -> figures.Mosaic:
        """Arrange slices, see `bagau_bids.reports.figures.mosaic`."""
        return figures.mosaic(strips, region, self.flair.affine, columns=columns)

    def draw(self, layout: figures.Mosaic) -> Image.Image:
        """Draw the slices of the FLAIR."""
        return figures.draw_slices(layout, self.flair.data, self.window)


def load_shown(scan: ScanResults) -> Shown | None:
    """Load what all pictures need; None where it is not there.

    Raises
    ------
    ProcessingError
        If an image cannot be read, or lies on another grid.
    """
    if not scan.path("preproc_flair").is_file() or not scan.path("brain_mask").is_file():
        return None
    flair = load_image(scan.path("preproc_flair"))
    brain = load_image_on(scan.path("brain_mask"), flair) > 0
    return Shown(scan, flair, brain, figures.display_window(flair.data, brain))


# Makers of pictures by the part of the page they belong to; one makes nothing of images that are
# not there. What they raise is `ProcessingError`.
Maker = Callable[[Shown], Iterator[Picture]]


def key_pictures(shown: Shown) -> Iterator[Picture]:
    """Three slices at the most that say most of the scan, outlined, the chief one large."""
    if not shown.has("wmh_mask"):
        return
    mask = shown.load("wmh_mask") > 0
    axis = figures.scan_axis(shown.flair.affine)
    spacing_mm = float(spaces.voxel_sizes(shown.flair.affine)[axis])
    slices, caption = figures.key_slices(mask, axis, spacing_mm), "Most lesions, outlined in red."
    if not slices:
        slices = figures.spread_slices(shown.brain, axis, 3)
        caption = "No lesion was found."
    area = np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
    chief = max(slices, key=lambda index: int(area[index])) if mask.any() else slices[1]
    width, height = KEY_SIZE
    layout = figures.spotlight(
        (axis, slices, chief), shown.brain, shown.flair.affine, width=width, height=height
    )
    base, outline = shown.draw(layout), figures.draw_outline(layout, mask, WMH_COLOUR)
    (tile,) = (tile for tile in layout.tiles if tile.index == chief)
    _save_thumbnail(shown.scan, figures.stack(base, outline), tile)
    layers = [Layer("key", "outline", outline)]
    yield _picture(shown.scan, "key", "At a glance", caption, base, layers)


def _save_thumbnail(scan: ScanResults, picture: Image.Image, tile: figures.Tile) -> None:
    """Write a slice small, for the page over all participants."""
    rows, columns = tile.place
    small = picture.crop((columns.start, rows.start, columns.stop, rows.stop))
    small.thumbnail(THUMBNAIL_SIZE, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=THUMBNAIL_QUALITY, method=4)
    write_bytes(thumbnail_path(scan.output_dir, scan.stem), buffer.getvalue())


def thumbnail_path(output_dir: Path, stem: str) -> Path:
    """Return where the thumbnail of a scan lies."""
    return output_dir / stem.split("_")[0] / "figures" / f"{stem}_desc-thumbnail_FLAIR.webp"


def lesion_pictures(shown: Shown) -> Iterator[Picture]:
    """Slices through the lesions, along the scan's slices, and in all planes of a 3-D scan."""
    if not shown.has("wmh_mask"):
        return
    mask = shown.load("wmh_mask") > 0
    also = {name: shown.load(name) > 0 for name in OTHER_OUTLINES if shown.has(name)}
    first, *others = figures.planes_shown(shown.flair.affine)
    layers = _lesion_layers(shown, mask, also)
    outlined = np.any([mask, *also.values()], axis=0)
    which, slices = _lesion_slices(shown, outlined, first, LESION_SLICES)
    caption = (
        f"{which} ({figures.PLANE_NAMES[first]}). The outline of the mask is drawn smoothly "
        "between voxels."
    )
    if also:
        caption += " " + _outlines_in_words(also)
    if not others:
        spacing = float(spaces.voxel_sizes(shown.flair.affine)[first])
        caption += (
            f" Other planes are not shown: slices lie {spacing:.1f} mm apart, and a lesion "
            "would be a few coarse steps there."
        )
    yield _lesion_picture(shown, "wmh", caption, (first, slices), layers)
    for axis in others:
        which, slices = _lesion_slices(shown, outlined, axis, OTHER_PLANE_SLICES)
        plane = figures.PLANE_NAMES[axis]
        yield _lesion_picture(shown, f"wmh{plane}", f"{which} ({plane}).", (axis, slices), layers)


def _lesion_slices(shown: Shown, mask: np.ndarray, axis: int, count: int) -> tuple[str, list[int]]:
    """Slices to show across an axis, and in words which they are."""
    others = tuple(other for other in range(3) if other != axis)
    touched = np.count_nonzero(mask.any(axis=others))
    if not touched:
        slices = figures.spread_slices(shown.brain, axis, LESION_SLICES // 2)
        return "No lesion was found; slices spread over the brain", slices
    slices = figures.busiest_slices(mask, axis, count)
    if touched == 1:
        return "The only slice with lesions", slices
    share = "All" if len(slices) == touched else f"{len(slices)} of the"
    return f"{share} {touched} slices with lesions", slices


DrawLayer = Callable[[figures.Mosaic], Image.Image]


def _outlines_in_words(also: Mapping[str, np.ndarray]) -> str:
    """Say what is outlined besides WMH, and what of it there is nothing of."""
    words = {
        "infarct_mask": ("infarcts in blue", "no infarct was found"),
        "known_lesion_mask": ("known lesions in light green", "no known lesion lies in the scan"),
    }
    said = [words[name][0 if mask.any() else 1] for name, mask in also.items()]
    return ", ".join(["WMH are outlined in red", *said]) + "."


def _lesion_layers(
    shown: Shown, mask: np.ndarray, also: Mapping[str, np.ndarray]
) -> dict[tuple[str, str], DrawLayer]:
    """How to draw each layer over the lesions' slices, by the names of its file and view."""
    outlines = [(mask, WMH_COLOUR)]
    outlines += [(other, OTHER_OUTLINES[name][0]) for name, other in also.items()]

    def outline(layout: figures.Mosaic) -> Image.Image:
        drawn = [figures.draw_outline(layout, one, colour) for one, colour in outlines]
        return drawn[0] if len(drawn) == 1 else figures.stack_transparent(*drawn)

    layers: dict[tuple[str, str], DrawLayer] = {("", "outline"): outline}
    if shown.has("wmh_probseg"):
        probability = shown.load("wmh_probseg")
        layers["prob", "probability"] = lambda layout: figures.draw_heat(layout, probability)
    if shown.has("regions_dseg", "ventricle_mask") and mask.any():
        regions, ventricles = shown.load("regions_dseg"), shown.load("ventricle_mask")
        layers["regions", "regions"] = lambda layout: _draw_regions(layout, regions, ventricles)
    return layers


def _draw_regions(
    layout: figures.Mosaic, regions: np.ndarray, ventricles: np.ndarray
) -> Image.Image:
    """Lesions in the colours of their regions, and the ventricles that distances start from."""
    parts = [
        (np.isin(regions, [region_number(name, side) for side in SIDES]), COLOURS[name][0])
        for name in REGIONS
    ]
    filled = figures.draw_regions(layout, parts, REGION_OPACITY)
    outline = figures.draw_outline(layout, ventricles, VENTRICLE_COLOUR)
    return figures.stack_transparent(filled, outline)


def _lesion_picture(
    shown: Shown,
    name: str,
    caption: str,
    strip: tuple[int, list[int]],
    layers: dict[tuple[str, str], DrawLayer],
) -> Picture:
    axis, slices = strip
    layout = shown.layout([strip], shown.brain, figures.balanced_columns(len(slices)))
    drawn = [
        Layer(f"{name}{suffix}", view, draw(layout)) for (suffix, view), draw in layers.items()
    ]
    title = f"White matter hyperintensities, {figures.PLANE_NAMES[axis]}"
    picture = _picture(shown.scan, name, title, caption, shown.draw(layout), drawn)
    legend = [entry for name, entry in OTHER_OUTLINES.items() if shown.has(name)]
    if legend:
        legend.insert(0, (WMH_COLOUR, "WMH"))
    if ("regions", "regions") in layers:
        legend += [(COLOURS[region][0], region) for region in shown.regions]
        legend.append((VENTRICLE_COLOUR, "outline of the ventricles"))
    return replace(picture, legend=tuple(legend))


def suspect_pictures(shown: Shown) -> Iterator[Picture]:
    """Slices through large bright or dark areas at the cortex, each in a frame."""
    areas = recorded_areas(shown.scan)
    if not areas:
        return
    framed = np.zeros(shown.flair.data.shape, bool)
    for area in areas:
        framed[tuple(slice(*edges) for edges in area.box)] = True
    axis = figures.planes_shown(shown.flair.affine)[0]
    slices = figures.busiest_slices(framed, axis, SUSPECT_SLICES)
    layout = shown.layout([(axis, slices)], shown.brain, figures.balanced_columns(len(slices)))
    layers = [Layer("suspects", "frame", figures.draw_outline(layout, framed, SUSPECT_COLOUR))]
    found = "; ".join(f"{area.kind}, {area.volume_ml:.1f} ml, {area.place}" for area in areas)
    caption = (
        f"Found by brightness alone, compared with the other side: {found}. WMH in a frame may be "
        "part of something else."
    )
    title = "Large areas at the cortex"
    yield _picture(shown.scan, "suspects", title, caption, shown.draw(layout), layers)


def recorded_areas(scan: ScanResults) -> list[Suspect]:
    """Areas of the record whose kind raised a flag."""
    raised = {flag.figure for flag in scan.flags}
    areas = scan.steps.regions.suspects if scan.steps.regions else ()
    return [area for area in areas if FIGURES[area.kind] in raised]


def before_after_pictures(shown: Shown) -> Iterator[Picture]:
    """FLAIR as it was read and after correction, to be switched."""
    if not shown.has("conformed_flair"):
        return
    before = shown.load("conformed_flair")
    layout = shown.layout(_overview(shown, 1), _head(shown.flair.data), OVERVIEW_COLUMNS)
    window = figures.display_window(before, shown.brain)
    pair = ("after", shown.draw(layout)), ("before", figures.draw_slices(layout, before, window))
    caption = (
        "Before: the FLAIR as it was read, its voxels put in the order right, front, top. After: "
        "corrected for the uneven brightness that receive coils leave. Nothing is resampled. "
        "Both are shown from the 1st to the 99.7th percentile of the brain."
    )
    names = "conform", "FLAIR before and after conform and bias-field correction", caption
    yield _pair_picture(shown.scan, names, pair)


def brain_pictures(shown: Shown) -> Iterator[Picture]:
    """Outline of the brain mask."""
    layout = shown.layout(_overview(shown, 2), _head(shown.flair.data), OVERVIEW_COLUMNS)
    outline = figures.draw_outline(layout, shown.brain, BRAIN_COLOUR)
    layers = [Layer("brainmask", "outline", outline)]
    caption = "Outline of the brain mask. Lesions are looked for inside it only."
    base = shown.draw(layout)
    yield _picture(shown.scan, "brainmask", "Brain mask", caption, base, layers)


def registration_pictures(shown: Shown) -> Iterator[Picture]:
    """FLAIR and registered template, to be switched; then the map of white matter."""
    layout = shown.layout(_overview(shown, 2), shown.brain, OVERVIEW_COLUMNS)
    base, template = shown.draw(layout), shown.scan.template
    if shown.has("warped_t1w"):
        t1w = shown.load("warped_t1w")
        window = figures.display_window(t1w, t1w > 0)
        pair = ("FLAIR", base), ("template", figures.draw_slices(layout, t1w, window))
        outline = figures.draw_outline(layout, shown.brain, BRAIN_COLOUR)
        caption = (
            f"The T1w image of the template {template} after registration to this FLAIR. The blue "
            "line is the FLAIR's brain mask in both. Ventricles and the brain's border should "
            "stay in place when the picture flickers; single gyri need not, the template has "
            "none of this person."
        )
        names = "reg", "Registration of the template", caption
        yield _pair_picture(shown.scan, names, pair, Layer("", "brain mask", outline))
    if shown.has("wm_atlas"):
        yield _atlas_picture(shown, layout, base)


def _atlas_picture(shown: Shown, layout: figures.Mosaic, base: Image.Image) -> Picture:
    atlas = shown.load("wm_atlas")
    outline = figures.draw_outline(layout, atlas, ATLAS_COLOUR)
    layers = [Layer("atlas", "white matter", outline)]
    caption = (
        f"Outline of white matter of the template {shown.scan.template} (probability 0.5) after "
        "registration to this FLAIR. It guides the network and should follow the border of "
        "white and grey matter."
    )
    if shown.has("ventricle_mask"):
        outline = figures.draw_outline(layout, shown.load("ventricle_mask"), VENTRICLE_COLOUR)
        layers.append(Layer("ventricles", "ventricles", outline))
        regions = shown.scan.steps.regions
        words = VENTRICLE_WORDS[regions.ventricles] if regions else "the lateral ventricles"
        caption += (
            f" Ventricles: {words}; distances that tell periventricular from deep start from them."
        )
    return _picture(shown.scan, "atlas", "White matter map and ventricles", caption, base, layers)


def size_picture(scan: ScanResults, sizes_mm3: Sequence[float], voxel_mm3: float) -> Picture:
    """Histogram of lesion volumes; at least one."""
    drawn = figures.draw_size_histogram(sizes_mm3, voxel_mm3)
    caption = f"Number of lesions by volume; one voxel is {voxel_mm3:.2f} mm³."
    return _picture(scan, "sizes", "Lesion sizes", caption, drawn)


def _overview(shown: Shown, axial_rows: int) -> list[tuple[int, list[int]]]:
    """Rows of axial slices, one of coronal and one of sagittal ones."""
    return [
        (axis, figures.spread_slices(shown.brain, axis, rows * OVERVIEW_COLUMNS))
        for axis, rows in ((2, axial_rows), (1, 1), (0, 1))
    ]


def _head(flair: np.ndarray) -> np.ndarray:
    """Voxels clearly brighter than air: what pictures of the whole head are cropped to."""
    return flair > 0.1 * np.percentile(flair, 98)


def _picture(
    scan: ScanResults,
    name: str,
    title: str,
    caption: str,
    base: Image.Image,
    layers: Sequence[Layer] = (),
) -> Picture:
    """Save a picture, with each of its layers if it has any, and prepare it for the page."""
    whole = {layer.name: figures.stack(base, layer.picture) for layer in layers}
    show = partial(
        embed,
        (f"{scan.stem}_desc-{name}", title, caption),
        base,
        layers,
        without="FLAIR only",
    )
    return _saved(scan, whole or {name: base}, show)


def _pair_picture(
    scan: ScanResults,
    names: tuple[str, str, str],
    pair: tuple[tuple[str, Image.Image], tuple[str, Image.Image]],
    overlay: Layer | None = None,
) -> Picture:
    """Save two pictures to be compared, and prepare them for the page."""
    name, title, caption = names
    over = () if overlay is None else (overlay.picture,)
    whole = {f"{name}{what.lower()}": figures.stack(picture, *over) for what, picture in pair}
    show = partial(
        embed_pair, (f"{scan.stem}_desc-{name}", title, caption), *pair, overlay=overlay
    )
    return _saved(scan, whole, show)


def _saved(
    scan: ScanResults, pictures: Mapping[str, Image.Image], show: Callable[..., Picture]
) -> Picture:
    """Write pictures into the participant's figures, and prepare what the page shows of them.

    Both are mostly compression, and take as long as each other: they go on side by side.
    `show` is given the paths, below the root, as ``saved``.
    """
    folder = Path(f"sub-{scan.entities['sub']}") / "figures"
    paths = [folder / f"{scan.stem}_desc-{name}_FLAIR.png" for name in pictures]

    def save() -> None:
        for path, picture in zip(paths, pictures.values(), strict=True):
            write_bytes(scan.output_dir / path, figures.png_bytes(picture))

    def prepare() -> Picture:
        return show(saved=[path.as_posix() for path in paths])

    shown, _ = both(prepare, save)
    return shown

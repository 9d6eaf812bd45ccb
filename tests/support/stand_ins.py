"""Quick stand-ins for the slow functions of a scan, each of whose results depends on all it gets.

Pure functions of their arguments, so that a test may call them for what it expects.
"""

import hashlib

import msgspec
import nibabel as nib
import numpy as np

from bagau_bids.bids.records import Attempt
from bagau_bids.network.cards import Card
from bagau_bids.network.inference import Segmentation
from bagau_bids.network.weights import LoadedNetwork
from bagau_bids.preprocessing.brain_mask import BrainMask
from bagau_bids.preprocessing.registration import Registration
from bagau_bids.preprocessing.t1w import T1w
from bagau_bids.preprocessing.transforms import TemplateTransform
from bagau_bids.spaces import Image


def world(shape, affine):
    """Place of each voxel, (3, X, Y, Z), mm."""
    index = np.indices(shape)
    return np.tensordot(affine[:3, :3], index, axes=1) + affine[:3, 3].reshape(3, 1, 1, 1)


def brain_mask(flair):
    """Whatever is brighter than 50, but for what lies below 45 mm under the middle."""
    z = world(flair.data.shape, flair.affine)[2]
    note = f"a note of the brain mask, {flair.affine[2, 3]:.1f} mm"
    return BrainMask((flair.data > 50) & (z > -45), stripped=False, notes=(note,))


def correct_bias_field(flair, mask):
    """Slightly brighter towards the right, and 2 % outside the mask."""
    ramp = 1 + 1e-4 * np.tanh(world(flair.data.shape, flair.affine)[0] / 50)
    corrected = flair.data * ramp * np.where(mask, 1, 1.02)
    return Image(corrected.astype(np.float32), flair.affine)


def register_template(
    flair, brain_mask, template, *, method, seed, threads, helpers, excluded=None
):
    """A shift by more than a voxel and a little turn.

    What it says of itself is the brightness of what is compared.
    """
    compared = brain_mask if excluded is None else brain_mask & ~excluded
    information = float(flair.data[compared].mean()) / 250
    parts = (template.t1w, template.wm_probseg, template.brain_mask)
    t1w, white_matter, outline = (float(np.asarray(nib.load(p).dataobj).max()) for p in parts)
    matrix = np.eye(4)
    matrix[0, 1], matrix[1, 0] = flair.affine[:2, 3] / 10_000
    matrix[:3, 3] = 13 + seed / 10, -9 - len(method) / 10, 4 + threads / 10
    attempt = Attempt("centre of gravity", "bspline", 0.95, information, 0.5, 2.0)
    return Registration(
        wm_probseg=np.where(brain_mask, white_matter - flair.data / 5000, 0).astype(np.float32),
        t1w=np.where(brain_mask, t1w * outline - flair.data / 50, 0).astype(np.float32),
        transform=TemplateTransform(matrix, threads=helpers),
        method=method,
        used=attempt,
        attempts=(attempt,),
        notes=(),
    )


def t1w_on_flair(path, flair, brain_mask, *, seed, threads):
    """The FLAIR negated."""
    matrix = np.eye(4)
    matrix[:3, 3] = flair.affine[:3, 3] / 100 + seed
    return T1w(
        data=(-flair.data * np.where(brain_mask, 1, 1.01)).astype(np.float32),
        affine=flair.affine,
        transform=matrix,
        start="header",
        mutual_information=0.4,
        coverage=1 - threads / 1000,
        notes=(f"a note of {path.name}",),
    )


def load_weights(path, card=None):
    """No network, with the card given or one of its own, which names the content of the file."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    card = card or Card(architecture="bagau_net", version="1", sha256=digest, config={})
    return LoadedNetwork(object(), msgspec.structs.replace(card, sha256=digest))


def segment(networks, inputs, brain_mask, *, device, batch_size, tta):
    """Bright is a lesion where the atlas is, a little less with a bright T1w and when mirrored."""
    x, y = (np.rint(inputs.plane.pixels_of_voxels(axis)).astype(int) for axis in (0, 1))
    bright = 24 * np.mean([network.operating_points["wmh"] for network in networks])
    slices = np.where(
        inputs.channels["atlas"] > 0.1,
        inputs.channels["flair"] / bright + inputs.channels["atlas"] / 100,
        0,
    )
    if "t1" in inputs.channels:
        slices -= np.tanh(inputs.channels["t1"]) / 20
    slices = np.clip(0.98 * slices if tta else slices, 0, 1)[:, x.clip(0, 199)][
        :, :, y.clip(0, 199)
    ]
    probability = np.moveaxis(slices, 0, 2).astype(np.float32) * brain_mask
    views = (probability, np.roll(probability, 1, axis=0)) if tta else ()
    return Segmentation(probability, device, batch_size, "float32", inputs.notes, views=views)

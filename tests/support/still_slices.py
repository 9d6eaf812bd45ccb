"""Slices that the augmentation leaves as they are."""

from bagau_bids.training.augmentation import AugmentationSettings

STILL = AugmentationSettings(
    mirror=False,
    rotation_deg=0,
    shear_rad=0,
    zoom=(1, 1),
    gain=0,
    offset=0,
    log_gamma=0,
    noise=0,
    sharpness=(0, 0),
    shading=0,
    atlas_shift_probability=0,
    atlas_blank_probability=0,
)

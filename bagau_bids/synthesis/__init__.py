"""Synthetic FLAIR images from whole-head label maps."""

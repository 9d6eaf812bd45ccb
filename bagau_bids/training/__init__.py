"""Synthetic FLAIR images, data sets, losses and the training loops."""

"""Losses, augmentation, the loop under all trainings, and what each draws and judges by."""

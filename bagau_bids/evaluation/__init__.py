"""Masks against reference masks: pairs found, read, checked, scored and summarised."""

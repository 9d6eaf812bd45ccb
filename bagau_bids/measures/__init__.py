"""Lesions, volumes, agreement metrics and quality figures; functions of arrays."""

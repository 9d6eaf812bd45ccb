"""Figures, participant pages and group tables; reads the derivatives folder and nothing else."""

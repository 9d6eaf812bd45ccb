"""Experiments: many systems, trained and judged on the same folds of the same scans."""

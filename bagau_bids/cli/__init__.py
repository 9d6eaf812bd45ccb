"""Parsers and entry points; the only place that turns errors into exit codes."""

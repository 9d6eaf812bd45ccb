"""Thin nipype interfaces and the factories that connect them."""

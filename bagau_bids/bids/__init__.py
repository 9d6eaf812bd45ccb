"""What is read (scans found by pybids) and what is written (names, sidecars, descriptions)."""

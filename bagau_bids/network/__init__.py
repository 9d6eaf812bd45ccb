"""Networks, their weights, and the way from a volume to a probability map."""

#!/bin/sh
# Does this installation work? The parts that must be there, then a phantom from its FLAIR to the
# group table, quick and coarse, in a temporary folder. The images have it as bagau-check.
set -eu
bagau-bids --version
bagau models
bagau fetch --offline
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
bagau phantom "$scratch/bids" --subjects 1 --random-seed 1
bagau-bids "$scratch/bids" "$scratch/out" participant group --sloppy --offline --nprocs 1 \
    --work-dir "$scratch/work"
bagau phantom "$scratch/bids" --compare "$scratch/out"

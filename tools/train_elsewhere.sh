#!/usr/bin/env bash
# Train on a machine that has Python, torch and a GPU but nothing of this package's requirements,
# from a copy of this repository, and bring the weights back in pieces:
#
#   train_elsewhere.sh PACK RESULTS [options of `bagau train --stream`]
#
# PACK is what `bagau pack` wrote, or a tar file of it. What Python packages are missing (nibabel)
# may lie as wheels in $WHEELS. RESULTS holds at any time the best weights so far, in pieces of at
# most 15 MiB, and logs.tar.gz with their cards, the tables and the curves; join them with
#
#   cat RESULTS/full-best.safetensors.* > full-best.safetensors
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pack=$1 results=$2
shift 2
python=${PYTHON:-python3}
scratch=$(mktemp -d)
run=${RUN:-$scratch/run}
mkdir -p "$run" "$results"

packages=$scratch/packages
mkdir "$packages"
for wheel in "${WHEELS:-/nonexistent}"/*.whl; do
    [[ ! -e $wheel ]] || "$python" -m zipfile -e "$wheel" "$packages"
done
export PYTHONPATH=$here:$packages${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

if [[ -f $pack ]]; then
    mkdir "$scratch/pack"
    tar -xf "$pack" -C "$scratch/pack"
    pack=$(dirname "$(find "$scratch/pack" -name pack.json)")
fi

# A card names the SHA-256 of its weights, so that pieces of two exports are never taken for one.
deliver() {
    local weights target
    for weights in "$run"/*.safetensors; do
        [[ -e $weights ]] || continue
        target=$results/$(basename "$weights")
        [[ "$weights" -nt "$scratch/delivered" ]] || continue
        split --bytes=15M --numeric-suffixes "$weights" "$scratch/piece."
        rm -f "$target".*
        for piece in "$scratch"/piece.*; do
            mv "$piece" "$target.${piece##*.}"
        done
    done
    touch "$scratch/delivered"
    tar -czf "$scratch/logs.tar.gz" -C "$run" --exclude='*.safetensors' --exclude='*.pt' .
    mv "$scratch/logs.tar.gz" "$results/logs.tar.gz"
}

touch -d @0 "$scratch/delivered"
(while sleep 20; do deliver; done) &
courier=$!
status=0
"$python" -m bagau_bids.cli.toolbox train --stream "$pack" "$run" "$@" 2>&1 |
    tee -a "$run/log.txt" || status=$?
kill "$courier" 2>/dev/null || true
wait "$courier" 2>/dev/null || true
# Half a piece of the one who was killed.
rm -f "$scratch"/piece.*
touch -d @0 "$scratch/delivered"
deliver
rm -rf "$scratch"
exit "$status"

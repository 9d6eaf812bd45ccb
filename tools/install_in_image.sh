#!/bin/sh
# The steps that Dockerfile and Singularity.def share, run inside of what they build:
#
#   install_in_image.sh dependencies cpu|cuda [TORCH_INDEX]   /opt/venv without this package
#   install_in_image.sh package [ROOT]                        this package into it, below ROOT
#   install_in_image.sh templates [STORE]                     /opt/templateflow, from a store that
#                                                             is here or the network, checked
#
# An address or a store called none is none: Apptainer before 1.2.4 takes no empty argument.
#
# pip is the one of the base image, so that the venv holds none. It reads /etc/xdg/pip/pip.conf,
# where a build may mount the settings of its site.
set -eu
cd "$(dirname "$0")"
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

venv=/opt/venv
site=$venv/lib/python3.11/site-packages

pip_install() {
    python -m pip --python "$venv/bin/python" install --no-compile -c constraints.txt "$@"
}

# Bytecode that stays valid whatever happens to the times of the files, since nobody can write
# it later: neither a read-only nor a foreign-owned image. Templates of other languages and
# Python 2 among the packages do not compile, which is no error.
compile_bytecode() {
    "$venv/bin/python" -m compileall -q -j 0 --invalidation-mode unchecked-hash "$1" \
        >/dev/null || true
}

given() {
    [ "${1:-none}" = none ] || echo "$1"
}

dependencies() {
    index=$(given "${2:-}")
    python -m venv --without-pip "$venv"
    pip_install ${index:+--index-url "$index"} torch
    check_variant "$1"
    python -c 'import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        >requirements.txt
    pip_install -r requirements.txt
    leave_out
    compile_bytecode "$site"
}

check_variant() {
    found=$("$venv/bin/python" -W ignore -c 'import torch
print("cuda" if torch.version.cuda else "cpu")')
    [ "$found" = "$1" ] && return
    echo "VARIANT=$1 was asked for, but pip found a $found build of torch;" \
        "give TORCH_INDEX, the address of the $1 builds (pytorch.org, Get started)" >&2
    exit 1
}

# What no run loads: tests of packages, headers and static libraries to link against, programs
# that test torch, wrappers of ITK modules that nothing here needs. The tests of the images import
# every module of this package and run a phantom.
leave_out() {
    find "$site" -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
    find "$site" -type f -name '*.a' -delete
    rm -rf "$site/torch/include" "$site/torch/share"
    find "$site/torch/bin" -type f ! -name torch_shm_manager -delete
    python prune_itk.py "$site/itk"
}

package() {
    pip_install --no-deps ${1:+--root "$1"} .
    compile_bytecode "${1:-}$site/bagau_bids"
    install -D -m 755 check_installation.sh "${1:-}/usr/local/bin/bagau-check"
}

templates() {
    export TEMPLATEFLOW_HOME=/opt/templateflow
    mkdir -p "$TEMPLATEFLOW_HOME"
    store=$(given "${1:-}")
    [ -z "$store" ] || cp -r "$store/." "$TEMPLATEFLOW_HOME"
    "$venv/bin/bagau" fetch
    chmod -R a+rX "$TEMPLATEFLOW_HOME"
}

step=$1
shift
"$step" "$@"

#!/usr/bin/env bash
# Programs that some tests need and pip cannot bring, installed with apt-get where one may.
#
# Only continuous integration calls this. It never fails: a test whose program is missing is
# skipped and says why, and this script says which programs those are.
set -uo pipefail

# Commands of which one is enough, and the package that brings it.
programs=(
    "chromium chromium-browser google-chrome google-chrome-stable=chromium"
    # For the container images; debootstrap makes the base image where none can be pulled.
    "podman=podman"
    "buildah=buildah"
    "crun runc=runc"
    "netavark /usr/lib/podman/netavark=netavark"
    "debootstrap=debootstrap"
    # A SLURM of one node.
    "slurmctld=slurmctld"
    "slurmd=slurmd"
    "sbatch=slurm-client"
    "munged=munge"
)

# Nothing when root, sudo without a password on a hosted runner, else no way to install.
as_root=()
if ((EUID != 0)); then
    as_root=(sudo -n)
fi

may_install() {
    command -v apt-get >/dev/null || return 1
    ((EUID == 0)) && return
    [[ -n "${CI:-}" ]] && sudo -n true 2>/dev/null
}

found_any() {
    local name
    for name in $1; do
        command -v "$name" >/dev/null && return
    done
    return 1
}

missing=()
for program in "${programs[@]}"; do
    found_any "${program%=*}" || missing+=("${program##*=}")
done
((${#missing[@]})) || exit 0

if may_install; then
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    apt_get=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq)
    "${apt_get[@]}" update >"$log" 2>&1 || tail -n 3 "$log" >&2
    # One at a time, so that a package that is not to be had does not take the others along.
    for package in "${missing[@]}"; do
        "${apt_get[@]}" install -y --no-install-recommends "$package" >"$log" 2>&1 ||
            tail -n 3 "$log" >&2
    done
fi

for program in "${programs[@]}"; do
    found_any "${program%=*}" ||
        echo "ci_packages: ${program##*=} is missing, the tests that need it are skipped" >&2
done
exit 0

#!/bin/bash
{% for option in sbatch -%}
#SBATCH {{ option }}
{% endfor -%}
# Written by bagau-bids {{ version }}: {{ written_by }}
#
#   bash SCRIPT [sbatch options]    submit all that is not done yet, and after it the last step
#
# The same command again, after failures, submits only what is not done. Options for sbatch, such
# as --partition, may also be written above.
set -euo pipefail

folder={{ folder }} # lists of what was submitted, and what the tasks print
at_once={{ at_once }} # tasks that may run at once; 0: as many as there is room for

# How a program of bagau-bids is run.
tool() {
{{ tool }}
}

# Print what is not done yet: a line a task.
list() {
    tool {{ list }}
}

# Do one line of the list.
work() {
{{ work }}
}

# What comes after all tasks.
last() {
    tool {{ last }}
}

submit() {
    local script lines count range tasks job after=()
    script=$(realpath "$0")
    mkdir -p "$folder"{{ needed_folders }}
    lines=$(mktemp "$folder/list-XXXXXX")
    list >"$lines"
    count=$(wc -l <"$lines")
    if ((count > 0)); then
        range=1-$count
        ((at_once == 0)) || range+=%$at_once
        tasks=$(sbatch --parsable --array="$range" --output="$folder/%A_%a.txt" "$@" \
            "$script" task "$lines")
        tasks=${tasks%%;*}
        after=(--dependency="{{ dependency }}:$tasks" --kill-on-invalid-dep=yes)
        echo "tasks: job $tasks, $count of them, listed in $lines"
    else
        rm "$lines"
        echo "tasks: all are done"
    fi
    job=$(sbatch --parsable --output="$folder/%j.txt" {{ last_sbatch }}"$@" "${after[@]}" \
        "$script" last)
    echo "after them: job ${job%%;*}"
    echo "what they print: $folder"
}

case ${1:-} in
    task)
        read -r -a items < <(sed -n "${SLURM_ARRAY_TASK_ID}p" "$2")
        work "${items[@]}"
        ;;
    last) last ;;
    *) submit "$@" ;;
esac

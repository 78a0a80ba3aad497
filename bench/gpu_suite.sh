#!/usr/bin/env bash
# Everything that is measured on an NVIDIA GPU, stage by stage, into one folder.
#
#   bench/gpu_suite.sh RESULTS_DIR [STAGE...] [--dry-run]
#
# Stages, in the order of `all` (the default): env build tests sanitizer tune kernels end_to_end predictor.
# Each takes at most eight minutes of a call, writes RESULTS_DIR/STAGE.json after every case, and goes on where it
# stopped when it is called again; what is complete for these sources and this GPU is not measured again.
# The exit code is the sum of the codes of stages that failed or are not finished: env 1, build 2, tests 4, sanitizer 8,
# tune 16, kernels 32, end_to_end 64, predictor 128. A stage that fails does not keep others from running.
#
# PYTHON                     interpreter with CUDA PyTorch and Triton (python3)
# TRACENET_SUITE_STAGE       seconds of a stage per call (420)
# TRACENET_SUITE_SECONDS     seconds of the whole call; stages that do not fit wait for the next one (no limit)
# TRACENET_SUITE_PRECISIONS  of float16,bfloat16,float32,tf32,ieee (float16)
# TRACENET_SUITE_TUNE        1 runs `tracenet tune` with the arguments in TRACENET_SUITE_TUNE_ARGS (not by default)
# TRACENET_SUITE_COMMIT      the commit, where the sources are no checkout
# TRACENET_SUITE_DRY         1 is --dry-run: tiny shapes in Triton's interpreter, no GPU, no clock
set -euo pipefail

readonly ALL=(env build tests sanitizer tune kernels end_to_end predictor)
readonly AGAIN=75 RESTARTS=5 GRACE=60 LEAST=20

usage() {
    sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p;}' "$0" >&2
    exit 2
}

bit_of() {
    local bit=1 name
    for name in "${ALL[@]}"; do
        if [[ "$name" == "$1" ]]; then
            echo "$bit"
            return 0
        fi
        bit=$((bit * 2))
    done
    return 1
}

words=()
for word in "$@"; do
    case "$word" in
        --dry-run) export TRACENET_SUITE_DRY=1 ;;
        -*) usage ;;
        *) words+=("$word") ;;
    esac
done
((${#words[@]})) || usage
results="${words[0]}"
stages=("${words[@]:1}")
if ((${#stages[@]} == 0)) || [[ "${stages[*]}" == all ]]; then
    stages=("${ALL[@]}")
fi
for stage in "${stages[@]}"; do
    bit_of "$stage" >/dev/null || {
        echo "gpu_suite.sh: no stage $stage; there are: ${ALL[*]} all" >&2
        exit 2
    }
done

mkdir -p "$results"
results="$(cd "$results" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
stage_seconds="${TRACENET_SUITE_STAGE:-420}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [[ "${TRACENET_SUITE_DRY:-0}" == 0 ]]; then
    unset TRITON_INTERPRET
fi

seconds_left() { # of the call, at most a stage's
    local left=$stage_seconds
    if [[ -n "${TRACENET_SUITE_SECONDS:-}" ]]; then
        left=$((TRACENET_SUITE_SECONDS - SECONDS))
        ((left < stage_seconds)) || left=$stage_seconds
    fi
    echo "$left"
}

run_stage() { # a case that breaks the device ends its process: begin again within the stage's time
    local stage=$1 end code=$AGAIN left try
    end=$((SECONDS + $(seconds_left)))
    for ((try = 0; try < RESTARTS && code == AGAIN; try++)); do
        left=$((end - SECONDS))
        ((left >= LEAST || try == 0 && left > 0)) || break
        code=0
        timeout --kill-after=10 "$((left + GRACE))" "$python" -m bench.gpu "$stage" \
            --json "$results/$stage.json" --seconds "$left" 2>&1 | tee "$results/$stage.txt" || code=$?
        # Ended by a signal or by the guard: the case that did it counts, the others go on.
        if ((code == 124 || code >= 128)); then
            code=$AGAIN
        fi
    done
    return "$code"
}

failed=0
summary=()
for stage in "${stages[@]}"; do
    began=$SECONDS code=0
    if (($(seconds_left) < LEAST)); then
        code=$AGAIN
    else
        run_stage "$stage" || code=$?
    fi
    case "$code" in
        0) state=ok ;;
        2) state=refused ;;
        "$AGAIN") state="not finished, call again" ;;
        *) state="failed ($code)" ;;
    esac
    summary+=("$(printf '%-12s %4d s  %s' "$stage" "$((SECONDS - began))" "$state")")
    if ((code)); then
        failed=$((failed | $(bit_of "$stage")))
    fi
done
printf '%s\n' "${summary[@]}" | tee "$results/summary.txt"
exit "$failed"

#!/usr/bin/env bash
# What a real GPU has to show: is it right there, and how fast?
#
#   benches/gpu.sh [--binary FILE] [--out DIR] [--total SECONDS] [--checkpoint DIR] [--small] [STEP…]
#
# Steps (all, if none is named): checkpoint devices parity captions variants quant kernels model profile peers compare.
# Each has its own time limit and runs whatever became of the others; --total ends them all. Where a call may take ten
# minutes at most, three calls one after the other do it:
#
#   benches/gpu.sh --total 570 checkpoint devices parity captions variants quant kernels
#   benches/gpu.sh --total 570 model profile peers
#   benches/gpu.sh --total 570 compare
#
# DIR (or $OUT, else target/gpu) gets eight files at most:
#
#   summary.txt   a line a step: ok, FAILED or skipped, seconds, what it found
#   gpu.log       all that the steps printed
#   devices.json  kernels.json  model.json  compare.json  peers.json (JSON, or a JSON object a line)
#   trace.json    of one caption, for ui.perfetto.dev
#
# Calls add up: summary.txt and gpu.log grow, each call under a heading with its steps, the commit and the time; of the
# other files a step that runs replaces its own.
#
# Nothing is fetched. Needed: a release build of the program (--binary, or .gl/blip2-wgpu, or target/release/blip2-wgpu).
# Where the machine has no Vulkan loader, put its Debian package (libvulkan1, and libegl1 libglvnd0 libopengl0 libgl1
# libglx0, which NVIDIA's driver may ask for) into .gl/; they are unpacked for this run, not into the system.
# `model`, `profile` and `compare` take the checkpoint of full size: the one given, or target/full, which `checkpoint` has
# python3 (with torch, transformers, tokenizers and safetensors) make while the next steps run; one whose making was
# interrupted is made again. `peers` wants a build of benches/peers as .gl/blip2-wgpu-peers. --small is for trying this
# script: the tiny checkpoint, the shortest settings.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

export OUT=${OUT:-target/gpu} SMALL=""
total=3600 binary="" checkpoint="" steps=()
while [ $# -gt 0 ]; do
    case $1 in
        --binary) binary=${2:?}; shift ;;
        --out) OUT=${2:?}; shift ;;
        --total) total=${2:?}; shift ;;
        --checkpoint) checkpoint=${2:?} checkpoint=${checkpoint%/}; shift ;;
        --small) SMALL=yes ;;
        -*) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
        *) steps+=("$1") ;;
    esac
    shift
done
[ ${#steps[@]} -gt 0 ] || steps=(checkpoint devices parity captions variants quant kernels model profile peers compare)

PROGRAM=""
for candidate in "$binary" .gl/blip2-wgpu target/release/blip2-wgpu; do
    if [ -n "$candidate" ] && [ -x "$candidate" ]; then
        PROGRAM=$(realpath "$candidate")
        break
    fi
done
[ -n "$PROGRAM" ] || { echo "no program: give --binary, or run cargo build --release" >&2; exit 2; }
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d) || exit 2
export PROGRAM WORK PYTHONUNBUFFERED=1
heading="##### ${steps[*]}${SMALL:+ (small)}; commit $(git describe --always --dirty 2>/dev/null || echo unknown); $(date -u '+%Y-%m-%d %H:%M:%S UTC')"

# A loader that was brought along, and where containers mount NVIDIA's driver.
if ! ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1'; then
    for package in .gl/*.deb; do
        [ -e "$package" ] && dpkg -x "$package" "$WORK/loader"
    done
    export LD_LIBRARY_PATH="$WORK/loader/usr/lib/x86_64-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
mounted=/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json
if [ -z "${VK_DRIVER_FILES:-}" ] && [ -e $mounted ] && [ -z "$(ls /{usr/share,etc}/vulkan/icd.d/*nvidia* 2>/dev/null)" ]; then
    export VK_DRIVER_FILES=$mounted
fi

export CHECKPOINT=${checkpoint:-target/full} BROUGHT=$checkpoint
if [ -n "$SMALL" ] && [ -z "$checkpoint" ]; then
    CHECKPOINT=tests/data/tiny BROUGHT=yes
fi
trap 'rm -rf "$WORK"' EXIT

# Whether the checkpoint is there and whole. One that was brought along is taken as it is; of target/full beside a log of
# its making, `made` has to be there, its last file.
have_checkpoint() {
    [ -e "$CHECKPOINT/made" ] || { [ -e "$CHECKPOINT/config.json" ] && { [ -n "$BROUGHT" ] || [ ! -e "$CHECKPOINT.log" ]; }; }
}

# Begins to make the checkpoint, in a session of its own, which outlives this script and holds a lock on the log meanwhile.
# It gets its name when it is whole.
do_checkpoint() {
    if have_checkpoint; then
        echo "found $CHECKPOINT"
        return
    fi
    mkdir -p "$(dirname "$CHECKPOINT")"
    exec 9>>"$CHECKPOINT.log" || return
    flock --nonblock 9 || { echo "found that it is being made already"; return; }
    # shellcheck disable=SC2016 # expanded by the inner shell
    setsid bash -c 'unfinished=$CHECKPOINT.unfinished
        rm -rf "$unfinished"
        [ -n "$BROUGHT" ] || rm -rf "$CHECKPOINT"
        python3 weights-tools/make_checkpoint.py "$unfinished" --preset opt-2.7b &&
            touch "$unfinished/made" && mv -T "$unfinished" "$CHECKPOINT"' >"$CHECKPOINT.log" 2>&1 </dev/null &
    echo "found that it is being made"
}

# Waits for the checkpoint; ends the step where there is none.
need_checkpoint() {
    if have_checkpoint; then return; fi
    [ ! -e "$CHECKPOINT.log" ] || flock "$CHECKPOINT.log" true
    if have_checkpoint; then return; fi
    echo "skipped, no checkpoint; the step \`checkpoint\` makes it: $(tail -n 1 "$CHECKPOINT.log" 2>/dev/null)"
    exit 0
}

# Captions of the kept scenes, one "scene: caption" a line. Arguments are the program's.
scene_captions() {
    "$PROGRAM" caption tests/data/demo --quiet "$@" | sed 's|^.*/||'
}

kept_captions() {
    sed -n 's/^ *"image": "\(.*\)",$/\1/p; s/^ *"caption": "\(.*\)",$/: \1/p' tests/data/demo/demo.json | sed 'N;s/\n//'
}

do_devices() {
    command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "$PROGRAM" devices --json >"$OUT/devices.json" || return
    "$PROGRAM" devices || return
    echo "found $("$PROGRAM" devices | sed -n 's/^[0-9]*: \(.*[^ ]\) *(auto).*/\1/p')"
}

do_parity() {
    local failed=0 count=0 dump
    for dump in "tiny tiny_dump" "tiny tiny_dump_70px" "tiny tiny_attention" "tiny-t5 tiny_t5_dump"; do
        # shellcheck disable=SC2086 # two words
        set -- $dump
        count=$((count + 1))
        "$PROGRAM" parity "tests/data/$1" "tests/data/$2.safetensors" >"$WORK/parity" 2>&1 || failed=$((failed + 1))
        echo "$dump: $(grep -c ' pass' "$WORK/parity") stages pass"
        grep -v ' pass' "$WORK/parity"
    done
    echo "found $((count - failed)) of $count dumps equal"
    return $failed
}

do_captions() {
    local failed=0 batch
    kept_captions >"$WORK/kept"
    for batch in 1 7 16; do
        scene_captions --batch-size $batch >"$WORK/captions" || failed=1
        diff "$WORK/kept" "$WORK/captions" || failed=1
    done
    echo "found $(wc -l <"$WORK/kept") captions, alone and in batches$([ $failed = 0 ] || echo ', NOT all equal')"
    return $failed
}

# The same captions whatever the device is denied, and with shaders that check bounds.
do_variants() {
    local failed="" variant
    kept_captions >"$WORK/kept"
    for variant in --checked "--disable f16" "--disable subgroups" "--disable limits" "--disable f16,subgroups,limits"; do
        # shellcheck disable=SC2086 # words of arguments
        scene_captions $variant >"$WORK/captions"
        diff "$WORK/kept" "$WORK/captions" || failed="$failed; $variant"
    done
    echo "found ${failed:-the same captions in all variants}"
    [ -z "$failed" ]
}

# Quantised weights may word a caption otherwise, but never say nothing.
do_quant() {
    local failed=0 found="" type same
    kept_captions >"$WORK/kept"
    for type in q8 q4; do
        scene_captions --quant $type >"$WORK/captions" || failed=1
        same=$(diff --unchanged-line-format='=' --old-line-format='' --new-line-format='' "$WORK/kept" "$WORK/captions" | wc -c)
        found="$found $type: $same of $(wc -l <"$WORK/kept") as f16;"
        ! grep -qE ': *$' "$WORK/captions" || failed=1
    done
    echo "found${found%;}"
    return $failed
}

do_kernels() {
    local settings=(--rounds 3)
    [ -z "$SMALL" ] || settings=(--rounds 1 32x2560)
    "$PROGRAM" bench kernels --json "${settings[@]}" >"$OUT/kernels.json" || return
    echo "found $(wc -l <"$OUT/kernels.json") lines in kernels.json"
}

do_model() {
    need_checkpoint
    local failed=0 type settings=()
    : >"$OUT/model.json"
    [ -z "$SMALL" ] || settings=(--rounds 1 --batches 1,2)
    for type in f16 q8 q4; do
        echo "{\"quant\": \"$type\"}" >>"$OUT/model.json"
        "$PROGRAM" bench model --json --model "$CHECKPOINT" --quant $type "${settings[@]}" >"$WORK/model" || failed=1
        cat "$WORK/model"
        cat "$WORK/model" >>"$OUT/model.json"
    done
    echo "found $(wc -l <"$OUT/model.json") lines in model.json"
    return $failed
}

do_profile() {
    need_checkpoint
    rm -f "$OUT/trace.json"
    "$PROGRAM" caption examples/scene_12.png --model "$CHECKPOINT" --prompt "a photo of" -v --profile --trace "$OUT/trace.json"
}

do_compare() {
    python3 -c 'import torch, transformers, tokenizers, safetensors' || { echo "skipped, python3 lacks a package"; return 0; }
    need_checkpoint
    rm -f "$OUT/compare.json"
    local settings=()
    [ -z "$SMALL" ] || settings=(--batch 1 2 --rounds 1 --check-images 2)
    python3 benches/compare_transformers.py --checkpoint "$CHECKPOINT" --binary "$PROGRAM" --work "$WORK/compare" \
        --json "$OUT/compare.json" "${settings[@]}" || return
    echo "found $(tail -n 40 "$WORK/step.log" | grep -c equal$) pictures with equal tokens; compare.json has the times"
}

do_peers() {
    [ -x .gl/blip2-wgpu-peers ] || { echo "skipped, no .gl/blip2-wgpu-peers"; return 0; }
    local settings=()
    [ -z "$SMALL" ] || settings=(--shape 32x256x256 --rounds 1)
    .gl/blip2-wgpu-peers --json "${settings[@]}" >"$OUT/peers.json" || return
    echo "found burn / ours $(sed 's/.*"ratio_geometric_mean":\([0-9]*\.[0-9][0-9]\).*/\1/' "$OUT/peers.json") in the geometric mean"
}

# Runs a step for at most `$2` seconds, or what is left of the total. A last line "found …" goes to the summary.
step() {
    local name=$1 limit=$2 left started status seconds last
    left=$((total - SECONDS))
    [ "$limit" -le "$left" ] || limit=$left
    printf '\n=== %s, at most %s s\n' "$name" "$limit" >>"$OUT/gpu.log"
    if [ "$limit" -lt 3 ]; then
        echo "$name: skipped, the time is used up"
        return
    fi
    started=$(date +%s%N)
    timeout --kill-after=5 "$limit" bash -uo pipefail -c "do_$name" >"$WORK/step.log" 2>&1
    status=$?
    seconds=$(awk "BEGIN { printf \"%.1f\", ($(date +%s%N) - $started) / 1e9 }")
    cat "$WORK/step.log" >>"$OUT/gpu.log"
    last=$(tail -n 1 "$WORK/step.log" | cut -c1-200)
    case $status:$last in
        0:skipped*) echo "$name: $last" ;;
        0:found*) echo "$name: ok, $seconds s; ${last#found }" ;;
        0:*) echo "$name: ok, $seconds s" ;;
        124:* | 137:*) echo "$name: FAILED, not done in $limit s" ;;
        *) echo "$name: FAILED ($status), $seconds s; ${last#found }" ;;
    esac
}

export -f have_checkpoint need_checkpoint scene_captions kept_captions
limit_of() {
    case $1 in
        checkpoint) echo 5 ;;
        devices) echo 20 ;;
        parity | variants) echo 90 ;; # the first to compile and to choose kernels
        captions | quant) echo 60 ;;
        kernels | peers) echo 200 ;;
        model) echo 300 ;;
        profile) echo 60 ;;
        compare) echo 560 ;;
    esac
}
printf '%s\n' "$heading" | tee -a "$OUT/gpu.log" "$OUT/summary.txt"
for name in "${steps[@]}"; do
    if ! declare -F "do_$name" >/dev/null; then
        echo "$name: FAILED, there is no such step"
        continue
    fi
    export -f "do_${name?}"
    step "$name" "$(limit_of "$name")"
done | tee -a "$OUT/summary.txt" "$WORK/summary"
echo "$SECONDS s; files in $OUT"
! grep -q FAILED "$WORK/summary"

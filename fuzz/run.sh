#!/usr/bin/env bash
# Feeds every reader of foreign bytes with random ones: `fuzz/run.sh [SECONDS] [TARGET…]`, 60 seconds each of all
# targets where none is named. Needs nightly Rust and `cargo install cargo-fuzz --locked`.
#
# The crate is safe Rust but for one mapping of a file, so no sanitizer is used: panics, hangs above a second and memory
# above the bound end a run. What ended it lies in fuzz/artifacts/.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    targets=($(cd fuzz/fuzz_targets && ls *.rs | sed 's/\.rs$//'))
fi

memory=/dev/shm
[ -d "$memory" ] || memory=${TMPDIR:-/tmp}
TMPDIR=$(mktemp -d "$memory/blip2-wgpu-fuzz.XXXXXX")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

build=(--sanitizer none --release --debug-assertions)
cargo +nightly fuzz build "${build[@]}"
failed=0
for target in "${targets[@]}"; do
    found=$TMPDIR/corpus-$target # the corpora that are kept stay as they are
    mkdir "$found"
    options=(-max_total_time="$seconds" -timeout=1 -rss_limit_mb=1024 -malloc_limit_mb=256 -max_len=4096)
    [ -f "fuzz/$target.dict" ] && options+=(-dict="fuzz/$target.dict")
    if cargo +nightly fuzz run "${build[@]}" "$target" "$found" "fuzz/corpus/$target" -- "${options[@]}" >"$TMPDIR/log" 2>&1; then
        echo "$target: $(grep '^Done' "$TMPDIR/log")"
    else
        failed=1
        echo "$target: FAILED"
        tail -40 "$TMPDIR/log"
    fi
done
exit $failed

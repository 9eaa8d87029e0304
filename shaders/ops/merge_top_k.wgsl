// merge_top_k: keeps each row's k best candidates while their scores come in tiles.
//
//   scores  f32 [rows, stride]            scores of the candidates base, base + 1, …, base + count - 1
//   tile    [2] u32                       base, count
//   top     [rows, k] of { candidate: u32, value: f32 }, read and written: best first, the lowest candidate first
//           of equals; places not yet filled are { 0xffffffff, lowest }
//
// k <= 512. The result does not depend on how the candidates were cut into tiles.
// Grid: (rows, 1, 1); one workgroup of 64 a row. Workgroup memory: 8 KiB.
// Called by the ITC search (kernels/ops/merge_top_k.rs).
//
// Candidates better than the worst one kept are set aside; when there may be no more room for them, and at the
// end, all are sorted and the best k stay. After the first tiles hardly any candidate is that good: a tile then is
// one pass over its scores.

#import shared/lowest

struct Params {
    stride: u32,
    k: u32,
}

struct Entry {
    candidate: u32,
    value: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> scores: array<f32>;
@group(0) @binding(2) var<storage, read> tile: array<u32>;
@group(0) @binding(3) var<storage, read_write> top: array<Entry>;

const THREADS: u32 = 64u;
const CHUNK: u32 = 256u; // candidates looked at between two checks of the room left
const CAPACITY: u32 = 1024u;
const NONE: Entry = Entry(0xffffffffu, LOWEST);

var<workgroup> entries: array<Entry, CAPACITY>; // the k best, then those set aside
var<workgroup> aside: atomic<u32>;
var<workgroup> aside_now: u32;

// The order of the result. Every candidate differs, so it is strict (but for empty places, which are all the same).
fn is_before(a: Entry, b: Entry) -> bool {
    return a.value > b.value || (a.value == b.value && a.candidate < b.candidate);
}

// Sorts the k best and the `count` set aside (bitonic: Batcher, 1968). Called by all threads.
fn sort(count: u32, thread: u32) {
    let used = params.k + count;
    var size = 2u;
    while size < used {
        size *= 2u;
    }
    for (var i = used + thread; i < size; i += THREADS) {
        entries[i] = NONE;
    }
    workgroupBarrier();
    for (var run = 2u; run <= size; run *= 2u) {
        for (var step = run / 2u; step > 0u; step /= 2u) {
            for (var pair = thread; pair < size / 2u; pair += THREADS) {
                let low = 2u * step * (pair / step) + pair % step;
                let high = low + step;
                let a = entries[low];
                let b = entries[high];
                let descending = (low & run) == 0u;
                if is_before(b, a) == descending && is_before(a, b) != descending {
                    entries[low] = b;
                    entries[high] = a;
                }
            }
            workgroupBarrier();
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first = group.x * params.k;
    let row = group.x * params.stride;
    let base = tile[0];
    let count = tile[1];

    for (var i = thread; i < params.k; i += THREADS) {
        entries[i] = top[first + i];
    }
    if thread == 0u {
        atomicStore(&aside, 0u);
    }
    workgroupBarrier();
    var worst = entries[params.k - 1u];

    for (var chunk = 0u; chunk < params.stride; chunk += CHUNK) {
        for (var i = chunk + thread; i < min(chunk + CHUNK, count); i += THREADS) {
            let entry = Entry(base + i, scores[row + i]);
            if is_before(entry, worst) {
                entries[params.k + atomicAdd(&aside, 1u)] = entry;
            }
        }
        workgroupBarrier();
        if thread == 0u {
            aside_now = atomicLoad(&aside);
        }
        let set_aside = workgroupUniformLoad(&aside_now);
        let is_last = chunk + CHUNK >= params.stride;
        if set_aside > 0u && (is_last || params.k + set_aside + CHUNK > CAPACITY) {
            sort(set_aside, thread);
            worst = entries[params.k - 1u];
            if thread == 0u {
                atomicStore(&aside, 0u);
            }
            workgroupBarrier();
        }
    }

    for (var i = thread; i < params.k; i += THREADS) {
        top[first + i] = entries[i];
    }
}

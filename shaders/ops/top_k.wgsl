// For every row of logits: the k largest entries, largest first and the lowest token first on
// ties, and the row's log-sum-exp.
//
//   logits       [rows, vocab] f32, row r at r * logits_stride
//   top          [rows, k] of { token: u32, value: f32 }
//   log_sum_exp  [rows] f32
//
// k <= 256. NaN, -inf and the masked value -3.4028235e38 rank last, in order of token, all with the
// masked value; where k > vocab the rest of the row is token 0xffffffff. The masked count as nothing
// in the sum. Grid: (rows, 1, 1); one workgroup a row. Called by beam search and sampling.
//
// Thread t first finds the best of the tokens t, t + WORKGROUP_SIZE, …: one coalesced pass. Then, k times,
// the best of them all is written, and all threads together find the next best in its owner's share.
// Measured: 10 rows x 50304 on llvmpipe, CPU time / 2 cores: k = 20 6 ms, k = 50 13 ms (256 threads; 1024 on a GPU:
// unmeasured).

#import shared/lowest

struct Params {
    vocab: u32,
    logits_stride: u32,
    k: u32,
}

struct Entry {
    token: u32,
    value: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> top: array<Entry>;
@group(0) @binding(3) var<storage, read_write> log_sum_exp: array<f32>;

override WORKGROUP_SIZE: u32 = 256u; // a power of two
const NONE: Entry = Entry(0xffffffffu, LOWEST);

var<workgroup> entries: array<Entry, WORKGROUP_SIZE>;
var<workgroup> sums: array<f32, WORKGROUP_SIZE>; // of exp(logit - value)

// The order of the result. Every token differs, so it is strict.
fn is_before(a: Entry, b: Entry) -> bool {
    return a.value > b.value || (a.value == b.value && a.token < b.token);
}

fn load(row: u32, token: u32) -> Entry {
    let logit = logits[row + token];
    return Entry(token, select(LOWEST, logit, logit > LOWEST));
}

// The first of the candidates in the order of the result.
fn workgroup_first(candidate: Entry, thread: u32) -> Entry {
    entries[thread] = candidate;
    workgroupBarrier();
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        if thread < half && is_before(entries[thread + half], entries[thread]) {
            entries[thread] = entries[thread + half];
        }
        workgroupBarrier();
    }
    let first = entries[0];
    workgroupBarrier();
    return first;
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.x * params.logits_stride;

    var best = NONE;
    var sum = 0.0;
    for (var token = thread; token < params.vocab; token += WORKGROUP_SIZE) {
        let entry = load(row, token);
        // One exponential an entry: either the sum shrinks to a new maximum or the entry joins it.
        let e = exp(-abs(entry.value - best.value));
        if entry.value > best.value {
            sum = sum * e + 1.0;
        } else {
            sum += select(0.0, e, entry.value > LOWEST);
        }
        if is_before(entry, best) {
            best = entry;
        }
    }

    var first = workgroup_first(best, thread);
    sums[thread] = sum * exp(best.value - first.value);
    workgroupBarrier();
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        if thread < half {
            sums[thread] += sums[thread + half];
        }
        workgroupBarrier();
    }
    if thread == 0u {
        log_sum_exp[group.x] = first.value + log(sums[0]);
    }

    for (var i = 0u; i < params.k; i++) {
        if thread == 0u {
            top[group.x * params.k + i] = first;
        }
        // The next best of the share that lost its best, by all threads.
        let owner = first.token % WORKGROUP_SIZE;
        var next = NONE;
        for (var token = owner + thread * WORKGROUP_SIZE; token < params.vocab; token += WORKGROUP_SIZE * WORKGROUP_SIZE) {
            let entry = load(row, token);
            if is_before(first, entry) && is_before(entry, next) {
                next = entry;
            }
        }
        next = workgroup_first(next, thread);
        if thread == owner {
            best = next;
        }
        first = workgroup_first(best, thread);
    }
}

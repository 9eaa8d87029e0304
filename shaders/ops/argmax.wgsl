// For every part of every row of logits: the largest entry (the lowest token on ties), its value, and the sum of
// exp(logit - value) over the part. Put together (advance.wgsl), the parts give the row's choice and its log-probability.
//
//   logits [rows, vocab] f32, dense; part p of a row holds the tokens from p * part_size on
//   bests  [rows, parts] of { token: u32, value: f32, sum: f32, pad: u32 }
//
// NaN never wins; -inf and the masked value -3.4028235e38 count as nothing in the sum.
// Grid: (rows, parts, 1); one workgroup of 256 a part, one pass. Called by greedy decoding.
// Measured: 10 rows x 50304 in one part on llvmpipe, CPU time / 2 cores: 0.65 ms. Several parts are for GPUs, where one
// workgroup a row would leave nearly all of the device idle (unmeasured).

#import shared/lowest

struct Params {
    vocab: u32,
    part_size: u32,
    parts: u32,
}

struct Best {
    token: u32,
    value: f32,
    sum: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> bests: array<Best>;

const THREADS: u32 = 256u;

var<workgroup> values: array<f32, THREADS>;
var<workgroup> tokens: array<u32, THREADS>;
var<workgroup> sums: array<f32, THREADS>; // of exp(logit - value)

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.x * params.vocab;
    let first = group.y * params.part_size + thread;
    let end = min((group.y + 1u) * params.part_size, params.vocab);
    var value = LOWEST;
    var token = select(params.vocab, first, first < end);
    var sum = 0.0;
    for (var i = first; i < end; i += THREADS) {
        let logit = logits[row + i];
        // One exponential an entry: either the sum shrinks to a new maximum or the entry joins it.
        let e = exp(-abs(logit - value));
        if logit > value {
            sum = sum * e + 1.0;
            value = logit;
            token = i;
        } else {
            sum += select(0.0, e, logit > LOWEST);
        }
    }
    values[thread] = value;
    tokens[thread] = token;
    sums[thread] = sum;
    workgroupBarrier();

    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if thread < half {
            let other = thread + half;
            let a = values[thread];
            let b = values[other];
            let high = max(a, b);
            sums[thread] = sums[thread] * exp(a - high) + sums[other] * exp(b - high);
            if b > a || (b == a && tokens[other] < tokens[thread]) {
                values[thread] = b;
                tokens[thread] = tokens[other];
            }
        }
        workgroupBarrier();
    }
    if thread == 0u {
        bests[group.x * params.parts + group.y] = Best(tokens[0], values[0], sums[0], 0u);
    }
}

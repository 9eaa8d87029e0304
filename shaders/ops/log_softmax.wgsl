// Logits to log-probabilities in place, row - log(sum(exp(row))), for the rows whose rules (row_rules.wgsl) ask for it.
//
//   logits [rows, vocab] f32, row r at r * logits_stride
//
// -inf and the masked value -3.4028235e38 count as nothing in the sum and stay masked
// (at or below -3.4e38). Grid: (rows, 1, 1); one workgroup a row.
// Called by beam search, before process_logits (HF applies its penalties to log-probabilities there).
// Measured: 10 rows x 50304 on llvmpipe, CPU time / 2 cores: 1.4 ms (256 threads; 1024 on a GPU: unmeasured).

#import shared/row_rules
#import shared/lowest

struct Params {
    vocab: u32,
    logits_stride: u32,
    rules_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
@group(0) @binding(2) var<storage, read> rules: array<u32>; // [rows, rules_stride]

override WORKGROUP_SIZE: u32 = 256u; // a power of two

var<workgroup> values: array<f32, WORKGROUP_SIZE>;
var<workgroup> sums: array<f32, WORKGROUP_SIZE>; // of exp(logit - value)

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    // The same for the whole workgroup: `rules` is read-only.
    if rules[group.x * params.rules_stride + RULE_IS_NORMALISED] == 0u {
        return;
    }
    let row = group.x * params.logits_stride;
    var value = LOWEST;
    var sum = 0.0;
    for (var i = thread; i < params.vocab; i += WORKGROUP_SIZE) {
        let logit = logits[row + i];
        // One exponential an entry: either the sum shrinks to a new maximum or the entry joins it.
        let e = exp(-abs(logit - value));
        if logit > value {
            sum = sum * e + 1.0;
            value = logit;
        } else {
            sum += select(0.0, e, logit > LOWEST);
        }
    }
    values[thread] = value;
    sums[thread] = sum;
    workgroupBarrier();
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        if thread < half {
            let a = values[thread];
            let b = values[thread + half];
            let high = max(a, b);
            sums[thread] = sums[thread] * exp(a - high) + sums[thread + half] * exp(b - high);
            values[thread] = high;
        }
        workgroupBarrier();
    }
    // A row with nothing but masked entries stays as it is.
    let log_sum_exp = select(0.0, values[0] + log(sums[0]), sums[0] > 0.0);
    for (var i = thread; i < params.vocab; i += WORKGROUP_SIZE) {
        let logit = logits[row + i];
        logits[row + i] = select(logit - log_sum_exp, LOWEST, logit <= LOWEST);
    }
}

// attention_weights: the weights of an attention, for looking at them: softmax(q · kᵀ * scale), the mean over all heads.
// The forward pass does not use it: its kernels keep no weights.
//
//   q          row r, head h: q[q_offset + r * q_stride + h * head_dim + d]
//   k          row p, head h: k[k_offset + p * k_stride + h * head_dim + d]
//   row_info   [rows]: x = sequence, y = position; position 0xffffffff: an inactive row, zeros out
//   page_table [sequences, max_length] u32: the row of k that holds (sequence, position)
//   out        [rows, columns] f32, dense: the weights on positions 0..columns of the row's own sequence
//
// Row r attends to the positions 0..=position: all of them where the caller gives the last position
// to every row (Q-Former), those up to its own in a causal pass (OPT). Positions beyond `columns`
// count in the softmax and are not written. head_dim <= 128.
// Grid: (rows, 1, 1); a workgroup of 64 a row. Each score is computed twice: for the softmax's sum,
// then for its weight; a thread owns the positions thread, thread + 64, …
// Called where a program keeps attention weights.
// Measured: Q-Former 32 queries x 257 keys (12 x 64) on llvmpipe, CPU time / 2 cores: 34 ms;
// OPT-2.7B (32 x 80), 60 causal rows: 26 ms.

#import shared/lowest

struct Params {
    heads: u32,
    head_dim: u32,
    q_stride: u32,
    q_offset: u32,
    k_stride: u32,
    k_offset: u32,
    max_length: u32,
    columns: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> row_info: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> page_table: array<u32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

const THREADS: u32 = 64u;
const INACTIVE: u32 = 0xffffffffu;

var<workgroup> query: array<f32, 128>;
var<workgroup> maxima: array<f32, THREADS>;
var<workgroup> sums: array<f32, THREADS>; // of exp(score - maximum)

// The scaled score of the query with the head's key at a position of the sequence.
fn score(sequence: u32, position: u32, head: u32) -> f32 {
    let row = page_table[sequence * params.max_length + position];
    let key = params.k_offset + row * params.k_stride + head;
    var dot = 0.0;
    for (var d = 0u; d < params.head_dim; d++) {
        dot += query[d] * k[key + d];
    }
    return dot * params.scale;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.x;
    let info = row_info[row];
    let length = select(info.y + 1u, 0u, info.y == INACTIVE);
    let written = min(length, params.columns);
    let out_row = row * params.columns;
    for (var position = thread; position < params.columns; position += THREADS) {
        out[out_row + position] = 0.0;
    }
    for (var index = 0u; index < params.heads; index++) {
        let head = index * params.head_dim;
        let q_row = params.q_offset + row * params.q_stride + head;
        workgroupBarrier();
        for (var d = thread; d < params.head_dim; d += THREADS) {
            query[d] = q[q_row + d];
        }
        workgroupBarrier();

        // The thread's own maximum and sum, then those of all threads.
        var highest = LOWEST;
        var sum = 0.0;
        for (var position = thread; position < length; position += THREADS) {
            let value = score(info.x, position, head);
            let higher = max(highest, value);
            sum = sum * exp(highest - higher) + exp(value - higher);
            highest = higher;
        }
        maxima[thread] = highest;
        sums[thread] = sum;
        workgroupBarrier();
        for (var half = THREADS / 2u; half > 0u; half /= 2u) {
            if thread < half {
                let higher = max(maxima[thread], maxima[thread + half]);
                sums[thread] = sums[thread] * exp(maxima[thread] - higher)
                    + sums[thread + half] * exp(maxima[thread + half] - higher);
                maxima[thread] = higher;
            }
            workgroupBarrier();
        }

        let share = 1.0 / (sums[0] * f32(params.heads));
        for (var position = thread; position < written; position += THREADS) {
            out[out_row + position] += exp(score(info.x, position, head) - maxima[0]) * share;
        }
    }
}

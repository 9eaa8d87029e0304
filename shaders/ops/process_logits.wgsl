// The score processors of transformers' generate, in its order, in place on each row, by the row's rules (row_rules.wgsl):
//   1. repetition penalty: every distinct token of the history once, s < 0 ? s * p : s / p
//   2. no repeated n-gram: a token that would complete an n-gram of the history is masked
//   3. while a row has too few new tokens, its end tokens are masked
//   4. its suppressed tokens are masked
//
//   scores     [rows, vocab] f32, row r at r * scores_stride: raw logits (greedy, sampling) or
//              log-probabilities (beams)
//   history    [rows, history_stride] u32: the row's token ids so far, oldest first (what counts,
//              the prompt or only new tokens, is the caller's choice; ids >= vocab are ignored)
//   row_state  [rows]: x = history length, y = new tokens so far
//
// Masked is -3.4028235e38, the lowest finite f32: no infinities in the arithmetic that follows.
// Grid: (rows, 1, 1); one workgroup of 64 a row. Called by schedule/programs/sample.rs (kernels/ops/process_logits.rs).
// Measured: 10 rows, 60 tokens of history, on llvmpipe, CPU time / 2 cores: 0.06 ms.

#import shared/row_rules
#import shared/lowest

struct Params {
    vocab: u32,
    scores_stride: u32,
    history_stride: u32,
    rules_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> scores: array<f32>;
@group(0) @binding(2) var<storage, read> history: array<u32>;
@group(0) @binding(3) var<storage, read> row_state: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> rules: array<u32>;            // [rows, rules_stride]

const THREADS: u32 = 64u;

fn mask(row: u32, token: u32) {
    if token < params.vocab {
        scores[row + token] = LOWEST;
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.x * params.scores_stride;
    let past = group.x * params.history_stride;
    let length = min(row_state[group.x].x, params.history_stride);
    let new_tokens = row_state[group.x].y;
    let rule = group.x * params.rules_stride;

    let penalty = bitcast<f32>(rules[rule + RULE_PENALTY]);
    if penalty != 1.0 {
        for (var i = thread; i < length; i += THREADS) {
            let token = history[past + i];
            // The token's first occurrence acts for all of them.
            var is_first = token < params.vocab;
            for (var j = 0u; j < i && is_first; j++) {
                is_first = history[past + j] != token;
            }
            if is_first {
                let s = scores[row + token];
                scores[row + token] = select(s / penalty, max(s * penalty, LOWEST), s < 0.0);
            }
        }
    }
    storageBarrier();

    let n = rules[rule + RULE_NGRAM];
    if n > 0u && length >= n {
        // The n - 1 last tokens, wherever they stand, must not be followed by what followed them.
        let tail = past + length - (n - 1u);
        for (var i = thread; i + n <= length; i += THREADS) {
            var is_repeat = true;
            for (var j = 0u; j + 1u < n && is_repeat; j++) {
                is_repeat = history[past + i + j] == history[tail + j];
            }
            if is_repeat {
                mask(row, history[past + i + n - 1u]);
            }
        }
    }

    let ends = rules[rule + RULE_ENDS];
    if new_tokens < rules[rule + RULE_MIN_NEW] {
        for (var i = thread; i < ends; i += THREADS) {
            mask(row, rules[rule + RULE_LISTS + i]);
        }
    }
    for (var i = thread; i < rules[rule + RULE_SUPPRESSED]; i += THREADS) {
        mask(row, rules[rule + RULE_LISTS + ends + i]);
    }
}

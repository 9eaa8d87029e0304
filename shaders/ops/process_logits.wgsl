// The score processors of transformers' generate, in its order, in place on each row, by the row's rules (row_rules.wgsl):
//   1. a run's bias is added to its last token where the others of the run are what the history ends with
//   2. repetition penalty: every distinct token of the history once, s < 0 ? s * p : s / p
//   3. no repeated n-gram: a token that would complete an n-gram of the history is masked, and so is one that would
//      complete a bad run
//   4. while a row has too few new tokens, its end tokens are masked
//   5. where the first or the last token is forced, all others are masked, and it scores 0
//   6. its suppressed tokens are masked, and at its beginning those suppressed there
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

// Masks the row's tokens `rules[start ..][.. count]`, each by one thread.
fn mask_all(row: u32, start: u32, count: u32, thread: u32) {
    for (var i = thread; i < count; i += THREADS) {
        mask(row, rules[start + i]);
    }
}

// Whether the history, `length` tokens from `past` on, ends with all of a run but its last token.
fn is_begun(tokens: u32, count: u32, past: u32, length: u32) -> bool {
    var equal = count <= length + 1u;
    for (var i = 0u; i + 1u < count && equal; i++) {
        equal = history[past + length + 1u - count + i] == rules[tokens + i];
    }
    return equal;
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

    let ends = rules[rule + RULE_ENDS];
    let suppressed = rules[rule + RULE_SUPPRESSED];
    let begin_suppressed = rules[rule + RULE_BEGIN_SUPPRESSED];
    let firsts = rules[rule + RULE_FORCED_FIRST];
    let lasts = rules[rule + RULE_FORCED_LAST];
    let end_list = rule + RULE_LISTS;
    let suppressed_list = end_list + ends;
    let begin_list = suppressed_list + suppressed;
    let first_list = begin_list + begin_suppressed;
    let last_list = first_list + firsts;

    // A token is one thread's, so that several runs may end with it.
    var run = last_list + lasts;
    for (var i = 0u; i < rules[rule + RULE_BIASED_RUNS]; i++) {
        let count = rules[run];
        let last = rules[run + 1u + count];
        if last % THREADS == thread && last < params.vocab && is_begun(run + 2u, count, past, length) {
            scores[row + last] = max(scores[row + last] + bitcast<f32>(rules[run + 1u]), LOWEST);
        }
        run += 2u + count;
    }
    storageBarrier();

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

    for (var i = 0u; i < rules[rule + RULE_BAD_RUNS]; i++) {
        let count = rules[run];
        let last = rules[run + 1u + count];
        if last % THREADS == thread && is_begun(run + 2u, count, past, length) {
            mask(row, last);
        }
        run += 2u + count;
    }
    if new_tokens < rules[rule + RULE_MIN_NEW] {
        mask_all(row, end_list, ends, thread);
    }

    // The last token is forced after the first, and so where a text has one token.
    let is_last = lasts > 0u && new_tokens + 1u == rules[rule + RULE_MAX_NEW];
    let is_first = firsts > 0u && new_tokens == 0u;
    let forced_list = select(first_list, last_list, is_last);
    let forced = select(select(0u, firsts, is_first), lasts, is_last);
    storageBarrier();
    for (var token = thread; forced > 0u && token < params.vocab; token += THREADS) {
        scores[row + token] = LOWEST;
    }
    storageBarrier();
    for (var i = thread; i < forced; i += THREADS) {
        let token = rules[forced_list + i];
        if token < params.vocab {
            scores[row + token] = 0.0;
        }
    }
    storageBarrier();

    mask_all(row, suppressed_list, suppressed, thread);
    if new_tokens == rules[rule + RULE_BEGIN] {
        mask_all(row, begin_list, begin_suppressed, thread);
    }
}

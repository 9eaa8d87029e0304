// advance: ends a greedy decode step on the GPU, so that the next one can follow without the host.
//
//   bests      [rows, parts]  (token, value, sum of exp(logit - value)) of argmax over the parts of the processed logits
//   row_info   (sequence, position) [rows]; position 0xffffffff marks a finished row
//   row_state  (history length, new tokens) [rows]
//   tokens     u32 [rows]: input of the next step
//   history    u32 [rows, history_stride]: prompt and generated ids, for the logit processors
//   chosen     [0].x counts the steps of the submit; then (token, log-probability bits) [steps, rows]: what the host reads
//
// A row that meets an end token or its greatest length (row_rules.wgsl) is finished: it writes 0 and stays where it is.
// Grid: 1; one thread a row, workgroup of 256 loops over rows.
// Called once a decode step by schedule/programs/sample.rs (kernels/ops/advance.rs). Its cost is the dispatch.

#import shared/row_rules

const INACTIVE: u32 = 0xffffffffu;

struct Params {
    rows: u32,
    history_stride: u32,
    rules_stride: u32,
    parts: u32,
}

// As argmax.wgsl writes it.
struct Best {
    token: u32,
    value: f32,
    sum: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> bests: array<Best>;                // [rows, parts]
@group(0) @binding(2) var<storage, read> rules: array<u32>;                 // [rows, rules_stride]
@group(0) @binding(3) var<storage, read_write> row_info: array<vec2<u32>>;  // [rows]
@group(0) @binding(4) var<storage, read_write> row_state: array<vec2<u32>>; // [rows]
@group(0) @binding(5) var<storage, read_write> tokens: array<u32>;          // [rows]
@group(0) @binding(6) var<storage, read_write> history: array<u32>;         // [rows, history_stride]
@group(0) @binding(7) var<storage, read_write> chosen: array<vec2<u32>>;    // [1 + window * rows], [0].x counts steps

// The best of a whole row. Of equal values the one of the first part has the lowest token.
fn best_of_row(row: u32) -> Best {
    var best = bests[row * params.parts];
    for (var part = 1u; part < params.parts; part++) {
        let other = bests[row * params.parts + part];
        let high = max(best.value, other.value);
        best.sum = best.sum * exp(best.value - high) + other.sum * exp(other.value - high);
        if other.value > best.value {
            best.value = other.value;
            best.token = other.token;
        }
    }
    return best;
}

fn is_end(token: u32, rule: u32) -> bool {
    for (var i = 0u; i < rules[rule + RULE_ENDS]; i++) {
        if rules[rule + RULE_LISTS + i] == token {
            return true;
        }
    }
    return false;
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    let step = chosen[0].x;
    // Every thread has read the counter before the first one counts it up.
    workgroupBarrier();
    storageBarrier();
    for (var row = thread; row < params.rows; row += 256u) {
        let at = 1u + step * params.rows + row;
        let position = row_info[row].y;
        if position == INACTIVE {
            chosen[at] = vec2<u32>(0u);
            continue;
        }
        let best = best_of_row(row);
        let token = best.token;
        let log_probability = -log(best.sum);
        chosen[at] = vec2<u32>(token, bitcast<u32>(log_probability));

        let state = row_state[row];
        history[row * params.history_stride + state.x] = token;
        row_state[row] = state + vec2<u32>(1u, 1u);
        tokens[row] = token;
        let rule = row * params.rules_stride;
        let finished = is_end(token, rule) || state.y + 1u >= rules[rule + RULE_MAX_NEW];
        row_info[row].y = select(position + 1u, INACTIVE, finished);
    }
    if thread == 0u {
        chosen[0].x = step + 1u;
    }
}

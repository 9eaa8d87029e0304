// embed_tokens: the decoder's input rows. A row is a token's embedding or a projected query ("visual") row,
// plus the position embedding where there is one (HAS_POSITIONS; T5 has none, and then `positions` is not read).
//
//   tokens     u32 [rows]                   a token id, or VISUAL | row of `visual`
//   row_info   (sequence, position) [rows]  position 0xffffffff marks an inactive row: zeros are written
//   weight     [part_rows, width]           rows first_row.. of the token embedding (it may exceed one binding)
//   positions  f16 [any, width]             row position + POSITION_OFFSET is added (OPT keeps two rows in front)
//   visual     f32 [any, width]
//   x          f32 [rows, width]
//
// Every part of the embedding has its own dispatch, which writes the rows whose token lies in it; the first
// (first_row = 0) also writes visual and inactive rows.
// width is a multiple of 8. Grid: x = ceil(width / 512), y = rows; one thread eight values.
// Called by model/opt.rs and model/t5.rs for prefill and for each decode step (kernels/ops/embed_tokens.rs). Its cost is the dispatch.

#import shared/weights_{weights}

const VISUAL: u32 = 0x80000000u;
const INACTIVE: u32 = 0xffffffffu;
override HAS_POSITIONS: bool = true;
override POSITION_OFFSET: u32 = 2u;

struct Params {
    width: u32,
    first_row: u32,
    part_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;          // [rows]
@group(0) @binding(2) var<storage, read> row_info: array<vec2<u32>>;  // [rows]
@group(0) @binding(3) var<storage, read> weight: array<vec4<u32>>;    // [part_rows, width / WEIGHT_K], scales
@group(0) @binding(4) var<storage, read> positions: array<vec4<u32>>; // [any, width / 8]
@group(0) @binding(5) var<storage, read> visual: array<vec4<f32>>;    // [any, width / 4]
@group(0) @binding(6) var<storage, read_write> x: array<vec4<f32>>;   // [rows, width / 4]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let eight = id.x;
    let row = id.y;
    let eights = params.width / 8u;
    if eight >= eights {
        return;
    }
    let token = tokens[row];
    let position = row_info[row].y;
    let is_visual = (token & VISUAL) != 0u;
    let at = 2u * (row * eights + eight);

    if position == INACTIVE {
        if params.first_row == 0u {
            x[at] = vec4<f32>();
            x[at + 1u] = vec4<f32>();
        }
        return;
    }
    var value: Eight;
    if is_visual {
        if params.first_row != 0u {
            return;
        }
        let first = 2u * ((token & ~VISUAL) * eights + eight);
        value = Eight(visual[first], visual[first + 1u]);
    } else {
        // Unsigned wrap-around makes tokens before this part fail the comparison too.
        let part_row = token - params.first_row;
        if part_row >= params.part_rows {
            return;
        }
        value = eight_at(params.part_rows, params.width, part_row, 8u * eight);
    }
    if HAS_POSITIONS {
        let halves = positions[(position + POSITION_OFFSET) * eights + eight];
        value.first += vec4<f32>(unpack2x16float(halves.x), unpack2x16float(halves.y));
        value.second += vec4<f32>(unpack2x16float(halves.z), unpack2x16float(halves.w));
    }
    x[at] = value.first;
    x[at + 1u] = value.second;
}

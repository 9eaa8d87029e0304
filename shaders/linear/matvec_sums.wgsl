// matvec_sums: what matvec and matvec_subgroup share: the walk of one invocation along K, for COLUMNS columns (rows of the
// weight) and up to ROWS rows of x.
//
// An invocation has a sum for each row and column, of its share of K; the kernels add up those of all invocations.

#import linear/columns

override ROWS: u32 = 1u; // 1 to 8; M is at most that

// low_r: columns 0 .. 3 of row r; high_r: columns 4 .. 7.
var<private> low_0: vec4<f32>; var<private> high_0: vec4<f32>;
var<private> low_1: vec4<f32>; var<private> high_1: vec4<f32>;
var<private> low_2: vec4<f32>; var<private> high_2: vec4<f32>;
var<private> low_3: vec4<f32>; var<private> high_3: vec4<f32>;
var<private> low_4: vec4<f32>; var<private> high_4: vec4<f32>;
var<private> low_5: vec4<f32>; var<private> high_5: vec4<f32>;
var<private> low_6: vec4<f32>; var<private> high_6: vec4<f32>;
var<private> low_7: vec4<f32>; var<private> high_7: vec4<f32>;

// Walks along elements first, first + step, .. of K, for the columns from `column` on.
fn add_products(column: u32, first: u32, step: u32) {
    begin_columns(column);
    // Rows past the end read the last one and are not stored.
    let x_stride = params.in_features / 4u;
    let last_row = params.rows - 1u;
    let x_at_0 = 0u;
    let x_at_1 = min(1u, last_row) * x_stride;
    let x_at_2 = min(2u, last_row) * x_stride;
    let x_at_3 = min(3u, last_row) * x_stride;
    let x_at_4 = min(4u, last_row) * x_stride;
    let x_at_5 = min(5u, last_row) * x_stride;
    let x_at_6 = min(6u, last_row) * x_stride;
    let x_at_7 = min(7u, last_row) * x_stride;

    let elements = params.in_features / WEIGHT_K;
    for (var element = first; element < elements; element += step) {
        var e = elements_at(element);
        let scale = column_scales(column, element);
        for (var piece = 0u; piece < WEIGHT_K / 8u; piece++) {
            let w = eight_of_k(e);
            e = next_eights(e);
            let unit = element * (WEIGHT_K / 4u) + 2u * piece;
            let y_0 = products(w, x[x_at_0 + unit], x[x_at_0 + unit + 1u]);
            low_0 += scale.low * y_0.low;
            high_0 += scale.high * y_0.high;
            if (ROWS > 1u) {
                let y_1 = products(w, x[x_at_1 + unit], x[x_at_1 + unit + 1u]);
                low_1 += scale.low * y_1.low;
                high_1 += scale.high * y_1.high;
            }
            if (ROWS > 2u) {
                let y_2 = products(w, x[x_at_2 + unit], x[x_at_2 + unit + 1u]);
                low_2 += scale.low * y_2.low;
                high_2 += scale.high * y_2.high;
            }
            if (ROWS > 3u) {
                let y_3 = products(w, x[x_at_3 + unit], x[x_at_3 + unit + 1u]);
                low_3 += scale.low * y_3.low;
                high_3 += scale.high * y_3.high;
            }
            if (ROWS > 4u) {
                let y_4 = products(w, x[x_at_4 + unit], x[x_at_4 + unit + 1u]);
                low_4 += scale.low * y_4.low;
                high_4 += scale.high * y_4.high;
            }
            if (ROWS > 5u) {
                let y_5 = products(w, x[x_at_5 + unit], x[x_at_5 + unit + 1u]);
                low_5 += scale.low * y_5.low;
                high_5 += scale.high * y_5.high;
            }
            if (ROWS > 6u) {
                let y_6 = products(w, x[x_at_6 + unit], x[x_at_6 + unit + 1u]);
                low_6 += scale.low * y_6.low;
                high_6 += scale.high * y_6.high;
            }
            if (ROWS > 7u) {
                let y_7 = products(w, x[x_at_7 + unit], x[x_at_7 + unit + 1u]);
                low_7 += scale.low * y_7.low;
                high_7 += scale.high * y_7.high;
            }
        }
    }
}

// The sums of a row. (One piece of code for all of them: written out for each, what is done with them would be most of the
// compile time.)
fn sums_of(row: u32) -> Columns {
    var sums = Columns(low_0, high_0);
    if (ROWS > 1u && row == 1u) { sums = Columns(low_1, high_1); }
    if (ROWS > 2u && row == 2u) { sums = Columns(low_2, high_2); }
    if (ROWS > 3u && row == 3u) { sums = Columns(low_3, high_3); }
    if (ROWS > 4u && row == 4u) { sums = Columns(low_4, high_4); }
    if (ROWS > 5u && row == 5u) { sums = Columns(low_5, high_5); }
    if (ROWS > 6u && row == 6u) { sums = Columns(low_6, high_6); }
    if (ROWS > 7u && row == 7u) { sums = Columns(low_7, high_7); }
    return sums;
}

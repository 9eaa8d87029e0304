// matvec_sums: what matvec and matvec_subgroup share: the walk of one invocation along K, for COLUMNS columns (rows of the
// weight) and up to ROWS rows of x. Textually put before them, after linear.wgsl.
//
// An invocation has a sum for each row and column, of its share of K; the kernels add up those of all invocations.

override ROWS: u32 = 1u;    // 1 to 8; M is at most that
override COLUMNS: u32 = 8u; // 4 or 8

// low_r: columns 0 .. 3 of row r; high_r: columns 4 .. 7.
var<private> low_0: vec4<f32>; var<private> high_0: vec4<f32>;
var<private> low_1: vec4<f32>; var<private> high_1: vec4<f32>;
var<private> low_2: vec4<f32>; var<private> high_2: vec4<f32>;
var<private> low_3: vec4<f32>; var<private> high_3: vec4<f32>;
var<private> low_4: vec4<f32>; var<private> high_4: vec4<f32>;
var<private> low_5: vec4<f32>; var<private> high_5: vec4<f32>;
var<private> low_6: vec4<f32>; var<private> high_6: vec4<f32>;
var<private> low_7: vec4<f32>; var<private> high_7: vec4<f32>;

// A value for each column of a row.
struct Columns {
    low: vec4<f32>,
    high: vec4<f32>,
}

// Eight of K of all columns: a the first four of them, b the others.
struct EightOfK {
    low_a: mat4x4<f32>,
    low_b: mat4x4<f32>,
    high_a: mat4x4<f32>,
    high_b: mat4x4<f32>,
}

// What eight of K add to a row's sums, but for the scales; x has them at `unit`.
fn products(w: EightOfK, unit: u32) -> Columns {
    let a = x[unit];
    let b = x[unit + 1u];
    var high = vec4<f32>();
    if (COLUMNS > 4u) {
        high = w.high_a * a + w.high_b * b;
    }
    return Columns(w.low_a * a + w.low_b * b, high);
}

// Walks along elements first, first + step, .. of K, for the columns from `column` on.
fn add_products(column: u32, first: u32, step: u32) {
    let elements = params.in_features / WEIGHT_K;
    let x_stride = params.in_features / 4u;
    let last_row = params.rows - 1u;
    let last_column = params.out_features - 1u;

    // Rows and columns past the end read the last one and are not stored.
    let x_at_0 = 0u;
    let x_at_1 = min(1u, last_row) * x_stride;
    let x_at_2 = min(2u, last_row) * x_stride;
    let x_at_3 = min(3u, last_row) * x_stride;
    let x_at_4 = min(4u, last_row) * x_stride;
    let x_at_5 = min(5u, last_row) * x_stride;
    let x_at_6 = min(6u, last_row) * x_stride;
    let x_at_7 = min(7u, last_row) * x_stride;
    let w_at_0 = min(column, last_column) * elements;
    let w_at_1 = min(column + 1u, last_column) * elements;
    let w_at_2 = min(column + 2u, last_column) * elements;
    let w_at_3 = min(column + 3u, last_column) * elements;
    let w_at_4 = min(column + 4u, last_column) * elements;
    let w_at_5 = min(column + 5u, last_column) * elements;
    let w_at_6 = min(column + 6u, last_column) * elements;
    let w_at_7 = min(column + 7u, last_column) * elements;

    for (var element = first; element < elements; element += step) {
        var h_0 = weight[w_at_0 + element];
        var h_1 = weight[w_at_1 + element];
        var h_2 = weight[w_at_2 + element];
        var h_3 = weight[w_at_3 + element];
        var h_4 = vec4<u32>();
        var h_5 = vec4<u32>();
        var h_6 = vec4<u32>();
        var h_7 = vec4<u32>();
        if (COLUMNS > 4u) {
            h_4 = weight[w_at_4 + element];
            h_5 = weight[w_at_5 + element];
            h_6 = weight[w_at_6 + element];
            h_7 = weight[w_at_7 + element];
        }
        let scales = eight_scales(params.out_features, params.in_features, min(column, last_column), element * WEIGHT_K);
        let high_scale = high_scales(scales);
        // Scales come by eight columns: four may be the last of them.
        let low_scale = select(low_scales(scales), high_scale, COLUMNS == 4u && column % 8u == 4u);

        for (var piece = 0u; piece < WEIGHT_K / 8u; piece++) {
            let w = EightOfK(
                four_k(first_four(h_0), first_four(h_1), first_four(h_2), first_four(h_3)),
                four_k(second_four(h_0), second_four(h_1), second_four(h_2), second_four(h_3)),
                four_k(first_four(h_4), first_four(h_5), first_four(h_6), first_four(h_7)),
                four_k(second_four(h_4), second_four(h_5), second_four(h_6), second_four(h_7)),
            );
            h_0 = next_eight(h_0);
            h_1 = next_eight(h_1);
            h_2 = next_eight(h_2);
            h_3 = next_eight(h_3);
            h_4 = next_eight(h_4);
            h_5 = next_eight(h_5);
            h_6 = next_eight(h_6);
            h_7 = next_eight(h_7);
            let unit = element * (WEIGHT_K / 4u) + 2u * piece;
            let y_0 = products(w, x_at_0 + unit);
            low_0 += low_scale * y_0.low;
            high_0 += high_scale * y_0.high;
            if (ROWS > 1u) {
                let y_1 = products(w, x_at_1 + unit);
                low_1 += low_scale * y_1.low;
                high_1 += high_scale * y_1.high;
            }
            if (ROWS > 2u) {
                let y_2 = products(w, x_at_2 + unit);
                low_2 += low_scale * y_2.low;
                high_2 += high_scale * y_2.high;
            }
            if (ROWS > 3u) {
                let y_3 = products(w, x_at_3 + unit);
                low_3 += low_scale * y_3.low;
                high_3 += high_scale * y_3.high;
            }
            if (ROWS > 4u) {
                let y_4 = products(w, x_at_4 + unit);
                low_4 += low_scale * y_4.low;
                high_4 += high_scale * y_4.high;
            }
            if (ROWS > 5u) {
                let y_5 = products(w, x_at_5 + unit);
                low_5 += low_scale * y_5.low;
                high_5 += high_scale * y_5.high;
            }
            if (ROWS > 6u) {
                let y_6 = products(w, x_at_6 + unit);
                low_6 += low_scale * y_6.low;
                high_6 += high_scale * y_6.high;
            }
            if (ROWS > 7u) {
                let y_7 = products(w, x_at_7 + unit);
                low_7 += low_scale * y_7.low;
                high_7 += high_scale * y_7.high;
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

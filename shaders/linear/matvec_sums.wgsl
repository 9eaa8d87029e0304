// matvec_sums: what matvec and matvec_subgroup share: the walk of one invocation along K, for COLUMNS columns (rows of the
// weight) and up to ROWS rows of x.
//
// An invocation has a sum for each row and column, of its share of K; the kernels add up those of all invocations.

#import linear/columns

override ROWS: u32 = 1u; // 1 to 8; M is at most that

// low_r: columns 0 .. 3 of row r; high_r: columns 4 .. 7.
#for r in 0..8
var<private> low_$r: vec4<f32>; var<private> high_$r: vec4<f32>;
#end

// Walks along elements first, first + step, .. of K, for the columns from `column` on.
fn add_products(column: u32, first: u32, step: u32) {
    begin_columns(column);
    // Rows past the end read the last one and are not stored.
    let x_stride = params.in_features / 4u;
    let last_row = params.rows - 1u;
#for r in 0..8
    let x_at_$r = min($ru, last_row) * x_stride;
#end

    let elements = params.in_features / WEIGHT_K;
    for (var element = first; element < elements; element += step) {
        var e = elements_at(element);
        let scale = column_scales(column, element);
        for (var piece = 0u; piece < WEIGHT_K / 8u; piece++) {
            let w = eight_of_k(e);
            e = next_eights(e);
            let unit = element * (WEIGHT_K / 4u) + 2u * piece;
#for r in 0..8
            if (ROWS > $ru) {
                let y = products(w, x[x_at_$r + unit], x[x_at_$r + unit + 1u]);
                low_$r += scale.low * y.low;
                high_$r += scale.high * y.high;
            }
#end
        }
    }
}

// The sums of a row. (One piece of code for all of them: written out for each, what is done with them would be most of the
// compile time.)
fn sums_of(row: u32) -> Columns {
    var sums = Columns(low_0, high_0);
#for r in 1..8
    if (ROWS > $ru && row == $ru) { sums = Columns(low_$r, high_$r); }
#end
    return sums;
}

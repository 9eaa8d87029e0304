// columns: COLUMNS columns of the result side by side (rows of the weight), as matmul_register, matvec and matvec_subgroup
// read them along K.

#import linear/linear
#import shared/weights_{weights}

override COLUMNS: u32 = 8u; // 4 or 8

// Where the columns' weights begin.
var<private> w_at_0: u32;
var<private> w_at_1: u32;
var<private> w_at_2: u32;
var<private> w_at_3: u32;
var<private> w_at_4: u32;
var<private> w_at_5: u32;
var<private> w_at_6: u32;
var<private> w_at_7: u32;

// Goes to the columns from `column` on. Those past the end read the last one and are not stored.
fn begin_columns(column: u32) {
    let elements = params.in_features / WEIGHT_K;
    let last_column = params.out_features - 1u;
    w_at_0 = min(column, last_column) * elements;
    w_at_1 = min(column + 1u, last_column) * elements;
    w_at_2 = min(column + 2u, last_column) * elements;
    w_at_3 = min(column + 3u, last_column) * elements;
    w_at_4 = min(column + 4u, last_column) * elements;
    w_at_5 = min(column + 5u, last_column) * elements;
    w_at_6 = min(column + 6u, last_column) * elements;
    w_at_7 = min(column + 7u, last_column) * elements;
}

// An element of `weight` of each column.
struct Elements {
    h_0: vec4<u32>,
    h_1: vec4<u32>,
    h_2: vec4<u32>,
    h_3: vec4<u32>,
    h_4: vec4<u32>,
    h_5: vec4<u32>,
    h_6: vec4<u32>,
    h_7: vec4<u32>,
}

fn elements_at(element: u32) -> Elements {
    var e: Elements;
    e.h_0 = weight[w_at_0 + element];
    e.h_1 = weight[w_at_1 + element];
    e.h_2 = weight[w_at_2 + element];
    e.h_3 = weight[w_at_3 + element];
    if (COLUMNS > 4u) {
        e.h_4 = weight[w_at_4 + element];
        e.h_5 = weight[w_at_5 + element];
        e.h_6 = weight[w_at_6 + element];
        e.h_7 = weight[w_at_7 + element];
    }
    return e;
}

// The elements with their next eight values in front.
fn next_eights(e: Elements) -> Elements {
    return Elements(
        next_eight(e.h_0), next_eight(e.h_1), next_eight(e.h_2), next_eight(e.h_3),
        next_eight(e.h_4), next_eight(e.h_5), next_eight(e.h_6), next_eight(e.h_7),
    );
}

// A value for each column: low the first four, high the others.
struct Columns {
    low: vec4<f32>,
    high: vec4<f32>,
}

// What the values of the elements number `element` are to be multiplied by.
fn column_scales(column: u32, element: u32) -> Columns {
    let row = min(column, params.out_features - 1u);
    let scales = eight_scales(params.out_features, params.in_features, row, element * WEIGHT_K);
    let high = high_scales(scales);
    // Scales come by eight columns: four may be the last of them.
    return Columns(select(low_scales(scales), high, COLUMNS == 4u && column % 8u == 4u), high);
}

// Four of K of four columns, from four of K of each. Times four of K of a row of x, it is that row's part of the four sums.
fn four_k(c_0: vec4<f32>, c_1: vec4<f32>, c_2: vec4<f32>, c_3: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        c_0.x, c_1.x, c_2.x, c_3.x,
        c_0.y, c_1.y, c_2.y, c_3.y,
        c_0.z, c_1.z, c_2.z, c_3.z,
        c_0.w, c_1.w, c_2.w, c_3.w,
    );
}

// Eight of K of all columns: a the first four of them, b the others.
struct EightOfK {
    low_a: mat4x4<f32>,
    low_b: mat4x4<f32>,
    high_a: mat4x4<f32>,
    high_b: mat4x4<f32>,
}

// The first eight values of the elements.
fn eight_of_k(e: Elements) -> EightOfK {
    return EightOfK(
        four_k(first_four(e.h_0), first_four(e.h_1), first_four(e.h_2), first_four(e.h_3)),
        four_k(second_four(e.h_0), second_four(e.h_1), second_four(e.h_2), second_four(e.h_3)),
        four_k(first_four(e.h_4), first_four(e.h_5), first_four(e.h_6), first_four(e.h_7)),
        four_k(second_four(e.h_4), second_four(e.h_5), second_four(e.h_6), second_four(e.h_7)),
    );
}

// What they add to a row's sums, but for the scales, where a and b are eight of K of that row.
fn products(w: EightOfK, a: vec4<f32>, b: vec4<f32>) -> Columns {
    var high = vec4<f32>();
    if (COLUMNS > 4u) {
        high = w.high_a * a + w.high_b * b;
    }
    return Columns(w.low_a * a + w.low_b * b, high);
}

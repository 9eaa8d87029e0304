// halves: eight f16 values, and how f32 become such. Imported by linear/matmul_cooperative.wgsl and
// linear/round_to_f16.wgsl.

enable f16;

// As read and stored at once: 16 bytes.
struct Halves {
    first: vec4<f16>,
    second: vec4<f16>,
}

const LARGEST: f32 = 65504.0;

// Values beyond f16's range count as its largest.
fn to_f16(v: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(v, vec4<f32>(-LARGEST), vec4<f32>(LARGEST)));
}

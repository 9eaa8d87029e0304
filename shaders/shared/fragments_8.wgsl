// fragments_8: fragments of 8×8 for kernels on cooperative matrices (Metal): WGSL has no way to choose a type by a
// constant. Those of 16×16: fragments_16.wgsl.

enable f16;
enable wgpu_cooperative_matrix;

const SIZE: u32 = 8u;
alias FragmentA = coop_mat8x8<f16, A>;
alias FragmentB = coop_mat8x8<f16, B>;
alias FragmentC = coop_mat8x8<f32, C>;

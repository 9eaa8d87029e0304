// cooperative_16: fragments of 16×16 for kernels on cooperative matrices. Textually put before everything else of theirs:
// WGSL wants its directives first, and has no way to choose a type by a constant.

enable f16;
enable wgpu_cooperative_matrix;

const SIZE: u32 = 16u;
alias FragmentA = coop_mat16x16<f16, A>;
alias FragmentB = coop_mat16x16<f16, B>;
alias FragmentC = coop_mat16x16<f32, C>;

// fragments_16: fragments of 16×16 for kernels on cooperative matrices (Vulkan): WGSL has no way to choose a type by a
// constant. Those of 8×8: fragments_8.wgsl.

enable f16;
enable wgpu_cooperative_matrix;

const SIZE: u32 = 16u;
alias FragmentA = coop_mat16x16<f16, A>;
alias FragmentB = coop_mat16x16<f16, B>;
alias FragmentC = coop_mat16x16<f32, C>;

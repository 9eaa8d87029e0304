//! The uniforms of kernels.

/// The uniform of a kernel, at binding 0: words in the order of the shader's `Params`. A test compares both.
pub trait Params: bytemuck::NoUninit {
    /// Names and WGSL types of the words.
    const FIELDS: &'static [(&'static str, &'static str)];
}

/// Declares a uniform of words, each a `u32` or an `f32`.
macro_rules! params {
    ($(#[$about:meta])* struct $name:ident { $($(#[$about_field:meta])* $field:ident: $kind:ident,)* }) => {
        $(#[$about])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, bytemuck::NoUninit)]
        struct $name {
            $($(#[$about_field])* $field: $kind,)*
        }

        impl crate::gpu::Params for $name {
            const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), stringify!($kind))),*];
        }
    };
}

pub(crate) use params;

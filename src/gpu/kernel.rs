//! What a kernel is: a shader file, its uniform and its bindings.

/// How a kernel uses one of its bindings. Binding 0 is always the uniform with its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    ReadWrite,
}

/// [`Access::Read`]: a kernel's bindings at a glance where it is defined.
pub(crate) const READ: Access = Access::Read;
/// [`Access::ReadWrite`]
pub(crate) const WRITE: Access = Access::ReadWrite;

/// A compute kernel: a shader file, the choices in its imports, and what it binds after the uniform
/// at binding 0.
#[derive(Debug)]
pub struct Kernel {
    /// Name in errors, timings and traces.
    pub name: &'static str,
    /// The file under `shaders/`, without `.wgsl`.
    pub shader: &'static str,
    /// What stands for the names in braces in the imports of its files.
    pub choices: &'static [(&'static str, &'static str)],
    /// [`Params::FIELDS`] of its uniform.
    pub params: &'static [(&'static str, &'static str)],
    /// Bindings 1, 2, … of group 0.
    pub bindings: &'static [Access],
}

impl Kernel {
    /// The kernel of a shader file, named after it, whose uniform is a `P`.
    pub(crate) const fn new<P: Params>(shader: &'static str, bindings: &'static [Access]) -> Self {
        let mut name = shader;
        let mut at = 0;
        while at < shader.len() {
            at += 1;
            if shader.as_bytes()[at - 1] == b'/' {
                name = shader.split_at(at).1;
            }
        }
        Self {
            name,
            shader,
            choices: &[],
            params: P::FIELDS,
            bindings,
        }
    }

    /// One of several kernels of its file.
    pub(crate) const fn named(
        self,
        name: &'static str,
        choices: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self {
            name,
            choices,
            ..self
        }
    }
}

/// Values for a kernel's `override` constants.
pub type Constants = Vec<(&'static str, f64)>;

/// The uniform of a kernel, at binding 0: words in the order of the shader's `Params`.
pub trait Params: bytemuck::NoUninit {
    /// Names and WGSL types of the words.
    const FIELDS: &'static [(&'static str, &'static str)];
}

/// Declares a uniform of words, each a `u32` or an `f32`. A test compares it with the shader's.
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

/// Declares kernels, each a `Kernel` or an array of them, and lists them for the tests that go over
/// all there are.
macro_rules! kernels {
    ($(#[$about:meta])* $seen:vis static $name:ident: Kernel = $kernel:expr; $($more:tt)*) => {
        $(#[$about])*
        $seen static $name: crate::gpu::Kernel = $kernel;
        #[cfg(test)]
        inventory::submit!(crate::gpu::Declared(std::slice::from_ref(&$name)));
        crate::gpu::kernels! { $($more)* }
    };
    ($(#[$about:meta])* $seen:vis static $name:ident: [Kernel; 3] = $kernels:expr; $($more:tt)*) => {
        $(#[$about])*
        $seen static $name: [crate::gpu::Kernel; 3] = $kernels;
        #[cfg(test)]
        inventory::submit!(crate::gpu::Declared(&$name));
        crate::gpu::kernels! { $($more)* }
    };
    () => {};
}

pub(crate) use {kernels, params};

/// Kernels that [`kernels`] has declared.
#[cfg(test)]
pub(crate) struct Declared(pub &'static [Kernel]);

#[cfg(test)]
inventory::collect!(Declared);

#[cfg(test)]
impl Kernel {
    /// All that there are.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        inventory::iter::<Declared>().flat_map(|declared| declared.0)
    }
}

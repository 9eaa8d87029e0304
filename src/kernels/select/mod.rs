//! Which of several kernels serves: each variant must be right (`verdict`), the fastest of the right
//! ones is measured where that pays (`race`), and no choice changes a bit (`invariance`). What was
//! found is kept for a device, in memory and in a file (`table`).

pub(super) mod invariance;
pub(super) mod race;
pub(super) mod table;
pub(super) mod verdict;

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::gpu::{Capabilities, Constants, Gpu, GpuError, Kernel, KernelChoice, WeightFormat};

use super::{attention, linear};
use table::Table;

/// Work that several kernels can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Family {
    /// Products of more than [`super::MATVEC_ROWS`] rows.
    Matmul,
    /// Products of fewer.
    Matvec,
    /// Attention of the ViT and the Q-Former.
    Attention,
}

impl Family {
    const ALL: [Self; 3] = [Self::Matmul, Self::Matvec, Self::Attention];

    fn name(self) -> &'static str {
        match self {
            Self::Matmul => "matmul",
            Self::Matvec => "matvec",
            Self::Attention => "attention",
        }
    }

    /// What it is for, in an error message.
    fn work(self) -> &'static str {
        match self {
            Self::Matmul => "linear layers of many rows",
            Self::Matvec => "linear layers of few rows",
            Self::Attention => "attention",
        }
    }

    /// The families of this name; `linear` stands for both of products.
    fn named(name: &str) -> Vec<Self> {
        let is_meant = |it: &Self| it.name() == name || name == "linear" && *it != Self::Attention;
        Self::ALL.into_iter().filter(is_meant).collect()
    }

    /// The kernels of it, whether a device can run them or not.
    fn kinds(self) -> Vec<Kind> {
        match self {
            Self::Matmul | Self::Matvec => linear::KINDS.iter().map(|it| it.kind).collect(),
            Self::Attention => attention::KINDS.iter().map(|it| it.kind).collect(),
        }
    }

    /// The variants that a device can run.
    fn names(self, capabilities: &Capabilities) -> Vec<Name> {
        let names_of = |rows: &[usize]| {
            let variants = rows
                .iter()
                .flat_map(|&it| linear::candidates(capabilities, it));
            variants.map(|it| Name::of(&it)).collect::<Vec<_>>()
        };
        let mut names = match self {
            Self::Matmul => names_of(&linear::SAMPLED_ROWS),
            Self::Matvec => names_of(&[1, 2, 3, 4, 5, 6, 7, 8]),
            Self::Attention => {
                let variants = attention::attention_candidates(capabilities);
                variants.iter().map(Name::of).collect()
            }
        };
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(name.variant.clone()));
        names
    }
}

/// A kernel that comes in several sizes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// The first word of its variants' names.
    pub name: &'static str,
    /// The kernel's name without its weight format.
    pub kernel: &'static str,
    /// Whether it uses what drivers are new to: cooperative matrices.
    pub is_experimental: bool,
    /// What a device lacks to run it.
    pub fits: fn(&Capabilities) -> Result<(), &'static str>,
}

/// One of several kernels that do the same, at one size.
pub(super) trait Variant: Clone + Display {
    fn kind(&self) -> Kind;

    /// The kernel for weights in `format`, where it reads any, and those that run before and after it.
    fn kernels(&self, format: WeightFormat) -> Vec<&'static Kernel>;

    /// The constants that make its size.
    fn size(&self) -> &Constants;
}

/// What a user may call a variant by.
struct Name {
    /// As `devices` lists it.
    variant: String,
    kind: Kind,
}

impl Name {
    fn of(variant: &impl Variant) -> Self {
        Self {
            variant: variant.to_string(),
            kind: variant.kind(),
        }
    }

    /// Whether `wanted` names this kernel, in any size.
    fn is_kind(&self, wanted: &str) -> bool {
        let kind = wanted.split(' ').next();
        [Some(self.kind.name), Some(self.kind.kernel)].contains(&kind)
    }

    /// Whether `wanted` names this variant, or its kernel without a size.
    fn is_meant(&self, wanted: &str) -> bool {
        self.variant == wanted || !wanted.contains(' ') && self.is_kind(wanted)
    }
}

/// What is known of a variant is known of this: the kernel, its size, and its text as it was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VariantKey {
    kernel: String,
    size: Vec<(String, u32)>,
    checked: bool,
    text: u64,
    /// [`CASES_VERSION`]
    cases: u32,
}

/// Counts the changes of the self-check's cases: what has passed others has passed nothing.
const CASES_VERSION: u32 = 4;

impl VariantKey {
    pub fn new(gpu: &Gpu, variant: &impl Variant, format: WeightFormat) -> Self {
        let kernels = variant.kernels(format);
        let size = variant.size().iter();
        Self {
            kernel: kernels[0].name.into(),
            size: size
                .map(|&(name, value)| (name.into(), value as u32))
                .collect(),
            checked: gpu.is_checked(),
            text: gpu.text_hash(&kernels),
            cases: CASES_VERSION,
        }
    }

    /// The same without the height of a tile, where one code serves all heights.
    pub fn of_any_height(mut self) -> Self {
        self.size.retain(|(name, _)| name != "ROWS");
        self
    }
}

/// Those of `variants` that may serve, the one to take unmeasured first: what the user has chosen
/// ([`crate::gpu::GpuOptions::kernels`]), without those found wrong.
pub(super) fn usable<V: Variant>(
    gpu: &Gpu,
    family: Family,
    variants: Vec<V>,
    format: WeightFormat,
) -> Vec<V> {
    let table = Table::of(gpu);
    let mut usable = allowed(gpu, family, variants);
    let first = usable[0].clone();
    usable.retain(|variant| {
        let key = VariantKey::new(gpu, variant, format).of_any_height();
        !table.is_wrong(&key)
    });
    if usable.is_empty() {
        usable.push(first); // `self_check` has refused the device; who goes on has not asked it
    }
    usable
}

/// Those of `variants` that the user has chosen, or all. A size that does not serve these rows leaves
/// all sizes of its kernel.
pub(super) fn allowed<V: Variant>(gpu: &Gpu, family: Family, variants: Vec<V>) -> Vec<V> {
    let wanted = Table::of(gpu).forced(family);
    let of = |test: fn(&Name, &str) -> bool| {
        let is_wanted = |it: &&V| wanted.iter().any(|wanted| test(&Name::of(*it), wanted));
        variants
            .iter()
            .filter(is_wanted)
            .cloned()
            .collect::<Vec<_>>()
    };
    let meant = [of(Name::is_meant), of(Name::is_kind)];
    meant
        .into_iter()
        .find(|it| !it.is_empty())
        .unwrap_or(variants)
}

/// Checks that [`crate::gpu::GpuOptions::kernels`] name kernels that `gpu` can run.
///
/// # Errors
/// [`GpuError::UnknownKernel`] with those there are, or [`GpuError::UnfitKernel`] with the reason.
pub fn check_choices(gpu: &Gpu) -> Result<(), GpuError> {
    let mut choices = gpu.kernel_choices().iter();
    choices.try_for_each(|choice| resolve(choice, gpu.capabilities()).map(drop))
}

/// The families that a choice is about, each of which has a variant of that name.
fn resolve(choice: &KernelChoice, capabilities: &Capabilities) -> Result<Vec<Family>, GpuError> {
    let wanted = choice.to_string();
    let families = Family::named(&choice.family);
    let names_of = |it: &Family| it.names(capabilities);
    let has_it = |it: &Family| {
        names_of(it)
            .iter()
            .any(|name| name.is_meant(&choice.variant))
    };
    let meant: Vec<Family> = families.iter().copied().filter(has_it).collect();
    if !meant.is_empty() {
        return Ok(meant);
    }
    let kinds = families.iter().flat_map(|family| family.kinds());
    let is_it = |kind: &Kind| [kind.name, kind.kernel].contains(&choice.kind());
    if let Some(Err(reason)) = kinds
        .into_iter()
        .find(is_it)
        .map(|it| (it.fits)(capabilities))
    {
        let reason = reason.into();
        return Err(GpuError::UnfitKernel { wanted, reason });
    }
    let available = if families.is_empty() {
        "the families are attention, linear, matmul, matvec".into()
    } else {
        let names = families.iter().flat_map(names_of).map(|name| name.variant);
        format!("this device has {}", names.collect::<Vec<_>>().join(", "))
    };
    Err(GpuError::UnknownKernel { wanted, available })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Disabled, GpuOptions};
    use crate::kernels::testing::gpu;

    fn choosing(list: &str) -> Gpu {
        let options = GpuOptions {
            kernels: KernelChoice::parse(list).expect("a list of choices"),
            ..GpuOptions::default()
        };
        pollster::block_on(Gpu::open(&options)).expect("an adapter")
    }

    /// The variants of products of so many rows.
    fn products(gpu: &Gpu, rows: usize) -> Vec<String> {
        let usable = linear::usable(gpu, rows, WeightFormat::F16);
        usable.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_chosen_serves_and_nothing_else() {
        let gpu = choosing("linear=matvec, matmul=tile,attention=flash");
        check_choices(&gpu).expect("every device has these");
        assert_eq!(products(&gpu, 1), ["vector"]);
        assert_eq!(products(&gpu, 8), ["vector"]);
        assert!(
            products(&gpu, 40)
                .iter()
                .all(|name| name.starts_with("tile "))
        );
        let candidates = attention::attention_candidates(gpu.capabilities());
        let allowed = allowed(&gpu, Family::Attention, candidates);
        let names: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["flash 64", "flash 32"]);

        let gpu = choosing("matmul=tile 64x64");
        check_choices(&gpu).expect("every device has it");
        assert_eq!(products(&gpu, 40), ["tile 64x64"]);
        assert_eq!(products(&gpu, 3), products(super::super::testing::gpu(), 3));
    }

    #[test]
    fn what_cannot_be_chosen_is_told_with_what_can() {
        let capabilities = gpu().capabilities().clone().without(Disabled {
            f16: true,
            subgroups: true,
            limits: true,
        });
        let error = |list: &str| {
            let choices = KernelChoice::parse(list).expect("a list of choices");
            let error = resolve(&choices[0], &capabilities).expect_err("it cannot be");
            error.to_string()
        };
        let says = |list: &str, words: &[&str]| {
            let error = error(list);
            let all = words.iter().all(|word| error.contains(word));
            assert!(all, "{error}: {words:?}");
        };
        says(
            "convolution=tile",
            &["'convolution=tile'", "attention, linear, matmul, matvec"],
        );
        says(
            "linear=warp_drive",
            &[
                "'linear=warp_drive'",
                "this device has tile 32x32",
                "vector",
            ],
        );
        says("matmul=tile 16x16", &["this device has", "tile 32x64"]);
        // A kernel of another family.
        says("matvec=tile", &["this device has vector"]);
        for list in ["linear=matvec_subgroup", "matvec=vector_subgroup 8"] {
            says(list, &["on this device: it needs subgroups"]);
        }
        says(
            "linear=cooperative",
            &["on this device: it needs cooperative matrices"],
        );
        says(
            "attention=tile",
            &["on this device: it needs subgroups of 8 lanes"],
        );
        let error = KernelChoice::parse("tile")
            .expect_err("no choice")
            .to_string();
        assert!(error.contains("FAMILY=VARIANT"), "{error}");
    }
}

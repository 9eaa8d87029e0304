//! How much memory a model may take, what it will take, and what to do where that is more.

use std::fmt;

use crate::Error;
use crate::gpu::{Gpu, GpuError, WeightFormat};
use crate::schedule::MemoryPlan;
use crate::weights::Outline;

use super::OpenOptions;

/// How much memory there is, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// What the user allows.
    Allowed(u64),
    /// What the system has left, where the device is the CPU.
    Available(u64),
    /// Nobody knows: wgpu does not tell how much a device has.
    Unknown,
}

impl Budget {
    /// The bytes `asked` for, or what is known of `gpu`'s memory.
    #[must_use]
    pub fn of(gpu: &Gpu, asked: Option<u64>) -> Self {
        if let Some(bytes) = asked {
            return Self::Allowed(bytes);
        }
        let is_cpu = gpu.info().device_type == wgpu::DeviceType::Cpu;
        let text = is_cpu.then(|| std::fs::read_to_string("/proc/meminfo"));
        match text.and_then(Result::ok).and_then(|text| available(&text)) {
            Some(bytes) => Self::Available(bytes),
            None => Self::Unknown,
        }
    }

    /// The bytes, where they are known.
    #[must_use]
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Allowed(bytes) | Self::Available(bytes) => Some(bytes),
            Self::Unknown => None,
        }
    }

    /// Whether so many bytes are there, as far as is known.
    #[must_use]
    pub fn holds(self, bytes: u64) -> bool {
        self.bytes().is_none_or(|most| bytes <= most)
    }
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Something else to try, and what it would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alternative {
    /// Another format of the weights.
    pub quant: Option<WeightFormat>,
    /// Fewer images at a time.
    pub batch_size: Option<usize>,
    /// Bytes it needs in all.
    pub bytes: u64,
}

impl fmt::Display for Alternative {
    /// The options to give, such as "`quant` q8 `batch_size` 1", and what the model needs with them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(format) = self.quant {
            write!(f, "`quant` {} ", format.name())?;
        }
        if let Some(batch) = self.batch_size {
            write!(f, "`batch_size` {batch} ")?;
        }
        write!(f, "needs {}", size(self.bytes))
    }
}

/// A model that does not fit the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The adapter's name.
    pub adapter: String,
    /// Images at a time that were planned for.
    pub batch: usize,
    /// What it needs.
    pub plan: MemoryPlan,
    /// What there is.
    pub budget: Budget,
    /// What would fit; where nothing does, the least there is; where nobody knows, what needs less.
    pub alternatives: Vec<Alternative>,
}

impl Shortage {
    /// Of `plan`, for `batch` images at a time, with those of `others` that help.
    pub(super) fn new(
        gpu: &Gpu,
        batch: usize,
        plan: MemoryPlan,
        budget: Budget,
        mut others: Vec<Alternative>,
    ) -> Self {
        others.retain(|other| other.bytes < plan.total());
        let fitting = |other: &&Alternative| budget.holds(other.bytes);
        let mut alternatives: Vec<Alternative> = others.iter().filter(fitting).copied().collect();
        if alternatives.is_empty() {
            alternatives.extend(others.into_iter().min_by_key(|other| other.bytes));
        }
        Self {
            adapter: gpu.info().name.clone(),
            batch,
            plan,
            budget,
            alternatives,
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        write!(
            f,
            "not enough memory on '{}': the model needs {} for {} at a time (weights {}, activations {}, cache {}), ",
            self.adapter,
            size(plan.total()),
            self.batch,
            size(plan.weights),
            size(plan.activations),
            size(plan.cache),
        )?;
        match self.budget {
            Budget::Allowed(bytes) => write!(f, "{} are allowed", room(bytes))?,
            Budget::Available(bytes) => write!(f, "{} are free", room(bytes))?,
            Budget::Unknown => write!(f, "the device ran out")?,
        }
        let fits = |other: &&Alternative| self.budget.holds(other.bytes);
        if self.alternatives.iter().filter(fits).count() == 0 {
            if let Some(least) = self.alternatives.first() {
                write!(f, "; even {least}: ")?;
            } else {
                write!(f, "; ")?;
            }
            return write!(f, "use another adapter, or give more with `memory`");
        }
        let word = match self.budget {
            Budget::Unknown => "this needs less",
            _ => "this fits",
        };
        write!(f, "; {word}:")?;
        for (index, other) in self.alternatives.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {other}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Shortage {}

/// Bytes for people: `7.66 GB`, in powers of ten as disks and drivers count. Rounded up, so that who allows as much as is said
/// to be needed has allowed enough.
fn size(bytes: u64) -> String {
    shown(bytes, u64::div_ceil)
}

/// The same of what there is: rounded down.
fn room(bytes: u64) -> String {
    shown(bytes, |bytes, step| bytes / step)
}

fn shown(bytes: u64, steps_of: fn(u64, u64) -> u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} KB", steps_of(bytes, 100) as f64 / 1e1),
        1_000_000..1_000_000_000 => format!("{:.1} MB", steps_of(bytes, 100_000) as f64 / 1e1),
        _ => format!("{:.2} GB", steps_of(bytes, 10_000_000) as f64 / 1e2),
    }
}

/// Reads `6GB`, `512 MiB`, `8000000000`: as people write sizes.
///
/// # Errors
/// What is wrong with it, and how to write it.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let problem =
        || format!("{text:?} is no size; write for example 6GB, 512MiB or a number of bytes");
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| problem())?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(problem()),
    };
    let bytes = number * factor;
    if bytes < 1.0 || bytes > u64::MAX as f64 {
        return Err(problem());
    }
    Ok(bytes.round() as u64)
}

/// Batches that are chosen among where none is asked for: the first is what a device with room gets.
pub(super) fn halves(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(most), |batch| (*batch > 1).then_some(batch / 2))
}

/// A checkpoint's needs, asked for before it is loaded.
pub(super) struct Planner<'a> {
    pub gpu: &'a Gpu,
    /// What there is.
    pub budget: Budget,
    /// Images at a time, if a number was asked for; then it has to fit.
    pub asked: Option<usize>,
    /// Images at a time where none is asked for and there is room.
    pub usual: usize,
    /// Bytes of the weights as they are loaded.
    pub weights: u64,
    /// Other formats of the weights, and the bytes they take.
    pub formats: Vec<(WeightFormat, u64)>,
}

impl<'a> Planner<'a> {
    /// For the model of `outline`.
    pub(super) fn new<M>(
        gpu: &'a Gpu,
        options: &OpenOptions,
        usual: usize,
        outline: &Outline<'_, M>,
    ) -> Self {
        let formats = [WeightFormat::Q8, WeightFormat::Q4].into_iter();
        let formats = formats.filter_map(|format| Some((format, outline.bytes_in(format)?)));
        Self {
            gpu,
            budget: Budget::of(gpu, options.memory),
            asked: options.work.batch_size,
            usual,
            weights: outline.device_bytes(),
            formats: formats.collect(),
        }
    }

    /// `error`; where the device ran out of memory while it was loaded, what else would do.
    pub(super) fn explain(
        &self,
        error: Error,
        batch: usize,
        plan: &dyn Fn(usize, u64) -> Result<MemoryPlan, Error>,
    ) -> Error {
        match error {
            Error::Gpu(GpuError::OutOfMemory { .. }) => Self {
                budget: Budget::Unknown,
                formats: self.formats.clone(),
                ..*self
            }
            .shortage(batch, plan),
            error => error,
        }
    }

    /// The batch to work with: the one asked for, or the largest up to the usual one that fits.
    ///
    /// # Errors
    /// [`Error::Memory`] if it, or the smallest, does not fit.
    pub(super) fn batch(
        &self,
        plan: &dyn Fn(usize, u64) -> Result<MemoryPlan, Error>,
    ) -> Result<usize, Error> {
        let batches: Vec<usize> = match self.asked {
            Some(batch) => vec![batch],
            None => halves(self.usual).collect(),
        };
        if self.budget == Budget::Unknown {
            return Ok(batches[0]);
        }
        for &batch in &batches {
            // A batch that not even one dispatch can hold is the queue's to halve.
            match plan(batch, self.weights) {
                Ok(needed) if !self.budget.holds(needed.total()) => {}
                _ => return Ok(batch),
            }
        }
        Err(self.shortage(batches[batches.len() - 1], plan))
    }

    /// The error that says what `batch` needs and what else would do.
    pub(super) fn shortage(
        &self,
        batch: usize,
        plan: &dyn Fn(usize, u64) -> Result<MemoryPlan, Error>,
    ) -> Error {
        let needed = match plan(batch, self.weights) {
            Ok(needed) => needed,
            Err(error) => return error,
        };
        let mut others = Vec::new();
        let mut add = |quant, batch_size: Option<usize>, weights: u64| {
            if let Ok(plan) = plan(batch_size.unwrap_or(batch), weights) {
                others.push(Alternative {
                    quant,
                    batch_size,
                    bytes: plan.total(),
                });
            }
        };
        let smaller = halves(batch).skip(1).find(|&batch| {
            plan(batch, self.weights).is_ok_and(|plan| self.budget.holds(plan.total()))
        });
        if smaller.is_some() {
            add(None, smaller, self.weights);
        }
        for &(format, weights) in &self.formats {
            add(Some(format), None, weights);
        }
        if batch > 1 {
            for &(format, weights) in &self.formats {
                add(Some(format), Some(1), weights);
            }
        }
        Shortage::new(self.gpu, batch, needed, self.budget, others).into()
    }
}

#[cfg(test)]
mod tests {
    use pollster::block_on;

    use crate::gpu::GpuOptions;
    use crate::image::{DecodePolicy, decode_file};
    use crate::task::{Blip2, CaptionOptions};

    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("6GB", 6_000_000_000),
            ("1.5 g", 1_500_000_000),
            ("512MiB", 512 << 20),
            ("2 gib", 2 << 30),
            ("77", 77),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "-1GB", "6 apples", "0", "1.2.3"] {
            let problem = parse_bytes(text).expect_err(text);
            assert!(problem.contains("6GB"), "{problem}");
        }
        assert_eq!(size(7_660_000_000), "7.66 GB");
        assert_eq!(size(1_500), "1.5 KB");
        for (bytes, needed, there) in [
            (999, "1.0 KB", "0.9 KB"),
            (3_340_001, "3.4 MB", "3.3 MB"),
            (4_161_234_567, "4.17 GB", "4.16 GB"),
            (4_170_000_000, "4.17 GB", "4.17 GB"),
        ] {
            assert_eq!(
                (size(bytes).as_str(), room(bytes).as_str()),
                (needed, there)
            );
            assert!(parse_bytes(needed).is_ok_and(|allowed| allowed >= bytes));
        }
    }

    #[test]
    fn the_systems_own_figure_is_found() {
        let text = "MemTotal:       24683548 kB\nMemFree: 1 kB\nMemAvailable:   21935044 kB\n";
        assert_eq!(available(text), Some(21_935_044 * 1024));
        assert_eq!(available("MemTotal: 3 kB\n"), None);
    }

    #[test]
    fn a_shortage_names_what_fits_and_else_the_least() {
        let plan = MemoryPlan {
            weights: 7_000_000_000,
            activations: 500_000_000,
            cache: 100_000_000,
            largest_buffer: 0,
        };
        let other = |quant, batch_size, bytes| Alternative {
            quant: Some(quant),
            batch_size,
            bytes,
        };
        let shortage = |bytes, alternatives| Shortage {
            adapter: "card".into(),
            batch: 16,
            plan,
            budget: Budget::Allowed(bytes),
            alternatives,
        };
        let some = shortage(
            5_000_000_000,
            vec![
                other(WeightFormat::Q8, None, 4_200_000_000),
                other(WeightFormat::Q4, Some(1), 2_500_000_000),
            ],
        );
        assert_eq!(
            some.to_string(),
            "not enough memory on 'card': the model needs 7.60 GB for 16 at a time (weights 7.00 GB, activations \
             500.0 MB, cache 100.0 MB), 5.00 GB are allowed; this fits: `quant` q8 needs 4.20 GB, \
             `quant` q4 `batch_size` 1 needs 2.50 GB"
        );
        let least = vec![other(WeightFormat::Q4, None, 2_500_000_000)];
        let none = shortage(1_000_000_000, least).to_string();
        assert!(
            none.ends_with(
                "; even `quant` q4 needs 2.50 GB: use another adapter, or give more with `memory`"
            ),
            "{none}"
        );
    }

    /// Drivers here never say that they have no room, so [`Gpu::run_out_of_memory_after`] plays one that does: at
    /// each of the buffers that loading and captioning make.
    #[test]
    fn a_device_without_room_is_named_and_lives_on() {
        let gpu = block_on(Gpu::open(&GpuOptions::default())).expect("an adapter");
        let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let open = || {
            let options = OpenOptions {
                device: Some(gpu.clone()),
                ..OpenOptions::default()
            };
            block_on(Blip2::open(tests.join("tiny"), options))
        };
        let images = ["house.png", "boat.png"]
            .map(|name| decode_file(&tests.join(name), DecodePolicy::hf()).expect("an image"));
        let images = [images.clone(), images].concat();
        let caption = |model: &mut Blip2| {
            let captions = block_on(model.caption(&images, &CaptionOptions::default()));
            captions.map(|all| all.into_iter().map(|one| one.tokens).collect::<Vec<_>>())
        };
        let named = |error: Error| {
            let text = error.to_string();
            assert!(text.contains("memory") && text.contains("use"), "{text}");
        };
        let expected = caption(&mut open().expect("room")).expect("room");
        let mut refusals = 0;
        for buffers in [0, 1, 7, 30, 80, 200] {
            gpu.run_out_of_memory_after(buffers);
            if let Err(error) = open() {
                named(error);
                refusals += 1;
            }
            gpu.run_out_of_memory_after(i64::MAX);
        }
        assert!(refusals >= 4, "{refusals}");
        let (mut refusals, mut halved) = (0, 0);
        for buffers in (0..60).step_by(3) {
            let mut model = open().expect("room");
            gpu.run_out_of_memory_after(buffers);
            match caption(&mut model) {
                Ok(tokens) => {
                    assert_eq!(tokens, expected, "after {buffers} buffers");
                    halved += 1;
                }
                Err(error) => {
                    named(error);
                    refusals += 1;
                }
            }
            gpu.run_out_of_memory_after(i64::MAX);
            assert_eq!(
                caption(&mut model).expect("room again"),
                expected,
                "after {buffers} buffers"
            );
        }
        eprintln!("{refusals} refusals, {halved} done with less");
        assert!(refusals > 0);
    }
}

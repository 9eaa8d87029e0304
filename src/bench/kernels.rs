//! Medians of wall time, the cases taking turns, and their shares of the ceilings.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::gpu::{ActivationPool, Gpu, GpuError, Program, ProgramBuilder};

use super::Inputs;
use super::cases::{Case, Traffic, cases, ceilings};

/// A round repeats a case for about this long, in one submit.
const ROUND_TIME: Duration = Duration::from_millis(30);
/// A case that takes longer than this, seconds, is measured once.
const SLOW: f64 = 1.0;

/// What bounds a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ceiling {
    /// Bytes a second that a copy reads and writes.
    Copy,
    /// Bytes a second that can be read.
    Read,
    /// FLOPs a second in f32.
    Multiply,
    /// FLOPs a second on cooperative matrices.
    Cooperative,
}

impl std::fmt::Display for Ceiling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Copy => "copy",
            Self::Read => "read",
            Self::Multiply => "multiply",
            Self::Cooperative => "cooperative",
        })
    }
}

/// The ceilings measured in a run: bytes or FLOPs a second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ceilings {
    rates: BTreeMap<Ceiling, f64>,
}

impl Ceilings {
    /// Those among `measurements`.
    #[must_use]
    pub fn of(measurements: &[Measurement]) -> Self {
        let rate = |measurement: &Measurement| {
            let case = &measurement.case;
            Some((
                case.ceiling?,
                (case.flops + case.bytes) / measurement.median(),
            ))
        };
        Self {
            rates: measurements.iter().filter_map(rate).collect(),
        }
    }

    /// One of them, if the adapter has it.
    #[must_use]
    pub fn rate(&self, ceiling: Ceiling) -> Option<f64> {
        self.rates.get(&ceiling).copied()
    }

    /// The fastest way to multiply.
    #[must_use]
    pub fn fastest_multiply(&self) -> Option<(Ceiling, f64)> {
        [Ceiling::Multiply, Ceiling::Cooperative]
            .into_iter()
            .filter_map(|ceiling| Some((ceiling, self.rate(ceiling)?)))
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    /// What bounds `case`, and the seconds that it leaves at least: the bytes at their rate or the FLOPs at theirs,
    /// whichever takes longer.
    #[must_use]
    pub fn bound(&self, case: &Case) -> Option<(Ceiling, f64)> {
        let memory = match case.traffic {
            Traffic::Read => Ceiling::Read,
            Traffic::Copy => Ceiling::Copy,
        };
        let multiply = if case.cooperative {
            Ceiling::Cooperative
        } else {
            Ceiling::Multiply
        };
        let seconds =
            |ceiling, work: f64| Some((ceiling, work / self.rate(ceiling)?)).filter(|_| work > 0.0);
        [seconds(memory, case.bytes), seconds(multiply, case.flops)]
            .into_iter()
            .flatten()
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
    }
}

/// A case that is being measured.
#[derive(Debug)]
pub struct Measurement {
    /// The case.
    pub case: Case,
    program: Program,
    replays: usize,
    /// Seconds a replay, of each round.
    times: Vec<f64>,
    most_rounds: usize,
}

impl Measurement {
    /// Records `case`, runs it once to warm it up, and sees how often it is to be repeated.
    ///
    /// # Errors
    /// No room on the device, or one that fails.
    pub async fn new(case: Case, inputs: &mut Inputs) -> Result<Self, GpuError> {
        let gpu = inputs.gpu().clone();
        let mut program = ProgramBuilder::new(&gpu, "bench");
        case.record(inputs, &mut program)?;
        let program = program.finish(&ActivationPool::default())?;
        let mut once = replay(&gpu, &program, 1).await?.as_secs_f64();
        let is_slow = once > SLOW;
        if !is_slow {
            once = replay(&gpu, &program, 1).await?.as_secs_f64(); // now without first-time costs
        }
        let repeats = case.repeats as f64;
        Ok(Self {
            case,
            program,
            replays: ((ROUND_TIME.as_secs_f64() / once) as usize).clamp(1, 200),
            times: if is_slow {
                vec![once / repeats]
            } else {
                Vec::new()
            },
            most_rounds: if is_slow { 1 } else { usize::MAX },
        })
    }

    /// Measures once more, unless the case is slow and has been measured often enough.
    ///
    /// # Errors
    /// A failing device.
    pub async fn round(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        if self.times.len() < self.most_rounds {
            let time = replay(gpu, &self.program, self.replays).await?;
            let runs = self.replays * self.case.repeats;
            self.times.push(time.as_secs_f64() / runs as f64);
        }
        Ok(())
    }

    /// Seconds, the median of the rounds so far.
    #[must_use]
    pub fn median(&self) -> f64 {
        median(&self.times)
    }
}

/// The middle one of `values`; NaN of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs `program` `count` times in one submit.
///
/// # Errors
/// A failing device.
pub async fn replay(gpu: &Gpu, program: &Program, count: usize) -> Result<Duration, GpuError> {
    let started = Instant::now();
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    for _ in 0..count {
        program.encode(&mut encoder);
    }
    gpu.submit([encoder.finish()]);
    gpu.finish("measuring").await?;
    Ok(started.elapsed())
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelRow {
    /// What is computed.
    pub kernel: &'static str,
    /// Its sizes.
    pub shape: String,
    /// By which kernel; empty where there is only one.
    pub variant: String,
    /// The median.
    pub seconds: f64,
    /// Multiplications and additions, `2 · M · N · K` of a product; 0 where they do not count.
    pub flops: f64,
    /// Bytes that must move: of products the weights only.
    pub bytes: f64,
    /// What bounds it.
    pub ceiling: Option<Ceiling>,
    /// The time that the ceiling allows over the median. Above 1 where caches help more than the ceiling's loop.
    pub share: Option<f64>,
}

impl KernelRow {
    fn new(measurement: &Measurement, ceilings: &Ceilings) -> Self {
        let case = &measurement.case;
        let seconds = measurement.median();
        let bound = ceilings.bound(case);
        Self {
            kernel: case.kernel,
            shape: case.shape.clone(),
            variant: case.variant.clone(),
            seconds,
            flops: case.flops,
            bytes: case.bytes,
            ceiling: bound.map(|(ceiling, _)| ceiling),
            share: bound.map(|(_, least)| least / seconds),
        }
    }
}

/// Measures the ceilings and then the cases whose name contains one of `filter`'s words (all, if there is none), each in
/// `rounds` rounds in which its variants take turns, so that drift hits all alike. `found` gets a row as soon as it is
/// known: on a small device all of them take their time.
///
/// # Errors
/// No room on the device for the shapes, or one that fails.
pub async fn measure_kernels(
    gpu: &Gpu,
    filter: &[String],
    rounds: usize,
    found: &mut dyn FnMut(KernelRow),
) -> Result<(), GpuError> {
    let mut inputs = Inputs::new(gpu);
    let limits = measure_in_turns(ceilings(gpu), &mut inputs, rounds).await?;
    let ceilings = Ceilings::of(&limits);
    for limit in &limits {
        found(KernelRow::new(limit, &ceilings));
    }
    drop(limits);
    let mut wanted = cases(gpu);
    wanted.retain(|case| {
        let name = case.name();
        filter.is_empty() || filter.iter().any(|word| name.contains(word.as_str()))
    });
    let mut wanted = wanted.into_iter().peekable();
    while let Some(first) = wanted.next() {
        let mut alike = vec![first];
        while let Some(next) = wanted.next_if(|next| next.is_like(&alike[0])) {
            alike.push(next);
        }
        for measurement in measure_in_turns(alike, &mut inputs, rounds).await? {
            found(KernelRow::new(&measurement, &ceilings));
        }
    }
    Ok(())
}

/// Those of `filter`'s words that [`measure_kernels`] would find in no line.
#[must_use]
pub fn unmatched<'f>(gpu: &Gpu, filter: &'f [String]) -> Vec<&'f str> {
    let names = cases(gpu).into_iter().chain(ceilings(gpu));
    let names: Vec<String> = names.map(|case| case.name()).collect();
    let is_unmatched = |word: &&str| !names.iter().any(|name| name.contains(word));
    let words = filter.iter().map(String::as_str);
    words.filter(is_unmatched).collect()
}

async fn measure_in_turns(
    cases: Vec<Case>,
    inputs: &mut Inputs,
    rounds: usize,
) -> Result<Vec<Measurement>, GpuError> {
    let gpu = inputs.gpu().clone();
    // All in one program first: their pipelines are then compiled on all cores.
    let mut program = ProgramBuilder::new(&gpu, "bench");
    for case in &cases {
        case.record(inputs, &mut program)?;
    }
    drop(program.finish(&ActivationPool::default())?);
    let mut measurements = Vec::with_capacity(cases.len());
    for case in cases {
        measurements.push(Measurement::new(case, inputs).await?);
    }
    for _ in 0..rounds.max(1) {
        for measurement in &mut measurements {
            measurement.round(&gpu).await?;
        }
    }
    Ok(measurements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::gpu;

    #[test]
    fn words_that_no_line_contains_are_told() {
        let filter = ["copy", "257x6144x1408", "nothing", "MATVEC"].map(str::to_owned);
        assert_eq!(unmatched(gpu(), &filter), ["nothing", "MATVEC"]);
    }

    #[test]
    fn the_slower_of_memory_and_arithmetic_bounds_a_kernel() {
        let ceilings = Ceilings {
            rates: [(Ceiling::Read, 10.0), (Ceiling::Multiply, 1000.0)].into(),
        };
        let mut case = cases(gpu()).remove(0);
        (case.bytes, case.flops) = (20.0, 1000.0);
        assert_eq!(ceilings.bound(&case), Some((Ceiling::Read, 2.0)));
        case.flops = 4000.0;
        assert_eq!(ceilings.bound(&case), Some((Ceiling::Multiply, 4.0)));
        case.traffic = Traffic::Copy; // not measured
        case.flops = 0.0;
        assert_eq!(ceilings.bound(&case), None);
        let (fastest, _) = ceilings.fastest_multiply().expect("one is there");
        assert_eq!(fastest, Ceiling::Multiply);
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn every_variant_of_a_product_is_a_case_and_names_differ() {
        let all = cases(gpu());
        let mut names: Vec<String> = all.iter().map(Case::name).collect();
        for rows in [1, 257, 2056] {
            for variant in crate::kernels::candidates(gpu().capabilities(), rows) {
                let end = format!(" {variant}");
                let begin = format!(" {rows}x");
                assert!(
                    names
                        .iter()
                        .any(|name| name.contains(&begin) && name.ends_with(&end)),
                    "{rows} rows by {variant}"
                );
            }
        }
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}

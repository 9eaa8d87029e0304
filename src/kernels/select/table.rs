//! What is known of a device's kernels: verdicts, winners of races, and what was chosen by them.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::gpu::{Gpu, WeightFormat};
use crate::kernels::linear::{LinearVariant, ProductKey};

use super::verdict::Verdict;
use super::{Family, VariantKey, resolve};

/// The table of a device.
#[derive(Debug, Default)]
pub(in crate::kernels) struct Table {
    /// What the user has chosen.
    forced: Vec<(Family, String)>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    found: Found,
    /// Whether `found` has something that its file lacks.
    is_new: bool,
    /// Products whose kernel is chosen: `[rows, out, in]`.
    chosen: HashMap<([usize; 3], WeightFormat), LinearVariant>,
    /// What [`Table::tell`] has told.
    told: HashSet<String>,
    /// Time that races took since the device was opened.
    spent: Duration,
}

/// What is kept in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Found {
    verdicts: Vec<(VariantKey, Verdict)>,
    winners: Vec<(ProductKey, VariantKey)>,
}

impl Table {
    /// The table of `gpu`.
    pub fn of(gpu: &Gpu) -> &Self {
        gpu.attached(|| {
            let choices = gpu.kernel_choices().iter();
            let forced = choices.flat_map(|choice| {
                // A choice that cannot be is an error of `check_choices`.
                let families = resolve(choice, gpu.capabilities()).unwrap_or_default();
                families.into_iter().map(|it| (it, choice.variant.clone()))
            });
            let found = gpu.tuning_cache().read();
            Self {
                forced: forced.collect(),
                state: Mutex::new(State {
                    found,
                    ..State::default()
                }),
            }
        })
    }

    /// Names of the variants that the user has chosen.
    pub fn forced(&self, family: Family) -> Vec<&str> {
        let of_family = self.forced.iter().filter(|(it, _)| *it == family);
        of_family.map(|(_, name)| name.as_str()).collect()
    }

    pub fn verdict(&self, key: &VariantKey) -> Option<Verdict> {
        self.with(|state| get(&state.found.verdicts, key).copied())
    }

    /// Whether a variant has failed its check. One that was never checked has not.
    pub fn is_wrong(&self, key: &VariantKey) -> bool {
        self.verdict(key).is_some_and(|it| it != Verdict::Right)
    }

    pub fn set_verdict(&self, key: &VariantKey, verdict: Verdict) {
        self.change(|found| set(&mut found.verdicts, key, verdict));
    }

    pub fn winner(&self, key: &ProductKey) -> Option<VariantKey> {
        self.with(|state| get(&state.found.winners, key).cloned())
    }

    pub fn set_winner(&self, key: &ProductKey, winner: VariantKey) {
        self.change(|found| set(&mut found.winners, key, winner));
    }

    /// The kernel of a product `[rows, out, in]`, chosen once.
    pub fn chosen(
        &self,
        product: [usize; 3],
        format: WeightFormat,
        choose: impl FnOnce() -> LinearVariant,
    ) -> LinearVariant {
        let key = (product, format);
        if let Some(chosen) = self.with(|state| state.chosen.get(&key).cloned()) {
            return chosen;
        }
        let chosen = choose();
        self.with(|state| state.chosen.insert(key, chosen.clone()));
        chosen
    }

    /// Logs which kernel serves what, once.
    pub fn tell(&self, work: String, kernel: &str, variant: &str) {
        if log::log_enabled!(log::Level::Debug) {
            let line = format!("{work}: {kernel} ({variant})");
            if self.with(|state| state.told.insert(line.clone())) {
                log::debug!("{line}");
            }
        }
    }

    /// Writes what is new to the file.
    pub fn save(&self, gpu: &Gpu) {
        self.with(|state| {
            if std::mem::take(&mut state.is_new) {
                gpu.tuning_cache().write(&state.found);
            }
        });
    }

    /// Notes that a race took so long.
    pub fn spend(&self, time: Duration) {
        self.with(|state| state.spent += time);
    }

    /// How long all of them took since the device was opened.
    pub fn spent(&self) -> Duration {
        self.with(|state| state.spent)
    }

    fn change(&self, change: impl FnOnce(&mut Found)) {
        self.with(|state| {
            change(&mut state.found);
            state.is_new = true;
            state.chosen.clear();
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn get<'a, K: PartialEq, V>(entries: &'a [(K, V)], key: &K) -> Option<&'a V> {
    let mut entries = entries.iter();
    entries.find(|(it, _)| it == key).map(|(_, value)| value)
}

fn set<K: PartialEq + Clone, V>(entries: &mut Vec<(K, V)>, key: &K, value: V) {
    match entries.iter_mut().find(|(it, _)| it == key) {
        Some(entry) => entry.1 = value,
        None => entries.push((key.clone(), value)),
    }
}

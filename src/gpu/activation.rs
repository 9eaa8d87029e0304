//! Activations: what a program computes on its way. They are named, not allocated, while it is recorded; when it is finished
//! their lifetimes are known, and those that never live together share a buffer.

use std::sync::{Mutex, PoisonError};

use super::{Gpu, GpuError, WeightBuffer};

/// A matrix of f32 that a program computes, `[rows, columns]` row-major. A name until the program is finished.
#[derive(Debug, Clone)]
pub struct Activation {
    /// Rows, most often tokens.
    pub rows: usize,
    /// Columns, most often the hidden width.
    pub columns: usize,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// Planned by the builder: index into its list.
    Planned(usize),
    /// Lives outside the program.
    External(wgpu::Buffer),
}

impl Activation {
    /// A buffer that outlives the program, seen as `[rows, columns]` f32.
    #[must_use]
    pub fn external(buffer: &wgpu::Buffer, rows: usize, columns: usize) -> Self {
        Self {
            rows,
            columns,
            place: Place::External(buffer.clone()),
        }
    }

    /// The same values seen in another shape of equal size, or as the first rows.
    #[must_use]
    pub fn reshaped(&self, rows: usize, columns: usize) -> Self {
        debug_assert!(rows * columns <= self.rows * self.columns);
        Self {
            rows,
            columns,
            place: self.place.clone(),
        }
    }

    /// As an operand of a dispatch.
    #[must_use]
    pub fn operand(&self) -> Operand {
        match &self.place {
            Place::Planned(index) => Operand::Planned(*index),
            Place::External(buffer) => Operand::Buffer(buffer.clone()),
        }
    }
}

/// What a dispatch binds.
#[derive(Debug, Clone)]
pub enum Operand {
    /// An activation planned by the builder.
    Planned(usize),
    /// A buffer of its own: weights, state, results.
    Buffer(wgpu::Buffer),
}

impl From<&wgpu::Buffer> for Operand {
    fn from(buffer: &wgpu::Buffer) -> Self {
        Self::Buffer(buffer.clone())
    }
}

impl From<&WeightBuffer> for Operand {
    fn from(buffer: &WeightBuffer) -> Self {
        Self::Buffer((**buffer).clone())
    }
}

impl From<&Activation> for Operand {
    fn from(activation: &Activation) -> Self {
        activation.operand()
    }
}

/// An activation's size and the dispatches between which it holds a value.
#[derive(Debug, Clone, Copy)]
struct Lifetime {
    bytes: u64,
    first: usize,
    last: usize,
}

/// The lifetimes of a program's activations.
#[derive(Debug, Default)]
pub(super) struct Lifetimes(Vec<Lifetime>);

impl Lifetimes {
    /// A new activation of `[rows, columns]` f32.
    pub(super) fn begin(&mut self, rows: usize, columns: usize) -> Activation {
        let bytes = (rows as u64 * columns as u64 * 4)
            .max(16)
            .next_multiple_of(16);
        self.0.push(Lifetime {
            bytes,
            first: usize::MAX,
            last: 0,
        });
        Activation {
            rows,
            columns,
            place: Place::Planned(self.0.len() - 1),
        }
    }

    /// Notes that dispatch number `dispatch` binds `operand`.
    pub(super) fn note_use(&mut self, operand: &Operand, dispatch: usize) {
        if let Operand::Planned(activation) = operand {
            let lifetime = &mut self.0[*activation];
            lifetime.first = lifetime.first.min(dispatch);
            lifetime.last = dispatch;
        }
    }

    /// Which of them share a buffer.
    pub(super) fn plan(&self) -> Plan {
        plan(&self.0)
    }
}

/// Which slot each activation gets, and how large each slot must be.
#[derive(Debug)]
pub(super) struct Plan {
    slot_of: Vec<usize>,
    /// Bytes of each.
    pub(super) slots: Vec<u64>,
}

impl Plan {
    /// What a dispatch binds for `operand`, where `buffers` are the slots'.
    pub(super) fn binding<'a>(
        &self,
        operand: &'a Operand,
        buffers: &'a [wgpu::Buffer],
    ) -> wgpu::BindingResource<'a> {
        match operand {
            Operand::Planned(activation) => buffers[self.slot_of[*activation]].as_entire_binding(),
            Operand::Buffer(buffer) => buffer.as_entire_binding(),
        }
    }
}

/// Gives each activation, in order of first use, the free slot that fits best; grows or adds one if none does.
fn plan(lifetimes: &[Lifetime]) -> Plan {
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&index| lifetimes[index].first);
    let mut slot_of = vec![0; lifetimes.len()];
    let mut slots: Vec<u64> = Vec::new();
    let mut busy_until: Vec<usize> = Vec::new();
    for index in order {
        let Lifetime { bytes, first, last } = lifetimes[index];
        if first == usize::MAX {
            continue; // never used by a dispatch; bound nowhere
        }
        let free = (0..slots.len()).filter(|&slot| busy_until[slot] < first);
        // Best fit first: the smallest that is large enough, else the one that must grow least.
        let best = free.min_by_key(|&slot| (slots[slot] < bytes, slots[slot].abs_diff(bytes)));
        let slot = best.unwrap_or_else(|| {
            slots.push(0);
            busy_until.push(0);
            slots.len() - 1
        });
        slots[slot] = slots[slot].max(bytes);
        busy_until[slot] = last;
        slot_of[index] = slot;
    }
    Plan { slot_of, slots }
}

/// The buffers that activations share. Programs of one pool must not run at the same time: on one queue they don't.
#[derive(Debug, Default)]
pub struct ActivationPool {
    /// With the bytes asked for.
    buffers: Mutex<Vec<(u64, wgpu::Buffer)>>,
}

impl ActivationPool {
    /// Bytes of all buffers now in the pool.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lock().iter().map(|(bytes, _)| bytes).sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, wgpu::Buffer)>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer for each slot: the largest slot gets the largest buffer; one that is too small is replaced
    /// (programs that hold the old one keep it).
    pub(super) fn buffers(&self, gpu: &Gpu, slots: &[u64]) -> Result<Vec<wgpu::Buffer>, GpuError> {
        let mut pool = self.lock();
        let mut order: Vec<usize> = (0..slots.len()).collect();
        order.sort_by_key(|&slot| std::cmp::Reverse(slots[slot]));
        let mut chosen: Vec<Option<wgpu::Buffer>> = vec![None; slots.len()];
        for (rank, &slot) in order.iter().enumerate() {
            if pool.get(rank).is_none_or(|(bytes, _)| *bytes < slots[slot]) {
                let buffer = (slots[slot], gpu.storage("activations", slots[slot])?);
                if rank < pool.len() {
                    pool[rank] = buffer;
                } else {
                    pool.push(buffer);
                }
            }
            chosen[slot] = Some(pool[rank].1.clone());
        }
        Ok(chosen.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifetime(bytes: u64, first: usize, last: usize) -> Lifetime {
        Lifetime { bytes, first, last }
    }

    #[test]
    fn activations_that_never_meet_share_a_slot() {
        let plan = plan(&[lifetime(64, 0, 1), lifetime(64, 1, 2), lifetime(64, 2, 3)]);
        assert_eq!(plan.slot_of, [0, 1, 0]);
        assert_eq!(plan.slots, [64, 64]);
    }

    #[test]
    fn activations_alive_together_never_share() {
        // A pseudo-random crowd of lifetimes, checked pair by pair.
        let mut seed = 7_u64;
        let mut next = |bound: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % bound
        };
        let lifetimes: Vec<_> = (0..200)
            .map(|_| {
                let first = next(100);
                lifetime(16 * (1 + next(50)) as u64, first, first + next(20))
            })
            .collect();
        let plan = plan(&lifetimes);
        for (a, x) in lifetimes.iter().enumerate() {
            assert!(plan.slots[plan.slot_of[a]] >= x.bytes);
            for (b, y) in lifetimes.iter().enumerate().skip(a + 1) {
                let together = x.first <= y.last && y.first <= x.last;
                assert!(
                    !together || plan.slot_of[a] != plan.slot_of[b],
                    "{x:?} {y:?}"
                );
            }
        }
    }

    #[test]
    fn a_transformer_block_needs_few_slots() {
        // norm, qkv, context, norm, mlp beside a residual stream that lives throughout.
        let block = [
            lifetime(1, 0, 5),
            lifetime(1, 0, 1),
            lifetime(3, 1, 2),
            lifetime(1, 2, 3),
            lifetime(1, 3, 4),
            lifetime(4, 4, 5),
        ];
        assert_eq!(plan(&block).slots.len(), 3);
    }
}

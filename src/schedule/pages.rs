//! Which physical rows of the KV cache are free.

/// The free rows of a cache. A sequence's positions may lie anywhere (the page table says where), so any free rows will
/// do and nothing ever fragments.
#[derive(Debug, Default)]
pub(super) struct PagePool {
    rows: usize,
    free: Vec<u32>,
}

impl PagePool {
    /// All `rows` rows free.
    pub(super) fn new(rows: usize) -> Self {
        Self {
            rows,
            free: (0..rows as u32).rev().collect(),
        }
    }

    /// Free or not.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Rows that are lent.
    pub(super) fn used(&self) -> usize {
        self.rows - self.free.len()
    }

    /// `count` rows, or nothing if there are fewer.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    /// Takes rows back.
    pub(super) fn give_back(&mut self, rows: Vec<u32>) {
        self.free.extend(rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_lent_once() {
        let mut pool = PagePool::new(5);
        let first = pool.take(2).expect("five are free");
        let second = pool.take(3).expect("three are free");
        assert!(pool.take(1).is_none());
        let mut all = [first.clone(), second].concat();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
        assert_eq!(pool.used(), pool.rows());
        pool.give_back(first);
        assert!(pool.take(3).is_none(), "a refusal takes nothing");
        assert_eq!(pool.take(2).map(|rows| rows.len()), Some(2));
    }
}

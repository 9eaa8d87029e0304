//! Outcomes come as they are ready; results go out in the order of the input.

use std::collections::BTreeMap;

/// Outcomes by number from 0, handed out in order without gaps.
#[derive(Debug)]
pub struct InOrder<T> {
    ready: BTreeMap<usize, T>,
    next: usize,
}

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self {
            ready: BTreeMap::new(),
            next: 0,
        }
    }
}

impl<T> InOrder<T> {
    /// Takes the outcome of `number`.
    pub fn put(&mut self, number: usize, outcome: T) {
        self.ready.insert(number, outcome);
    }

    /// The number of the next outcome.
    pub fn awaited(&self) -> usize {
        self.next
    }

    /// The next outcome and its number, if it is there.
    pub fn next(&mut self) -> Option<(usize, T)> {
        let outcome = self.ready.remove(&self.next)?;
        self.next += 1;
        Some((self.next - 1, outcome))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_hold_back() {
        let mut outcomes = InOrder::default();
        outcomes.put(2, 'c');
        assert_eq!(outcomes.next(), None);
        outcomes.put(0, 'a');
        assert_eq!(outcomes.next(), Some((0, 'a')));
        assert_eq!(outcomes.next(), None);
        outcomes.put(1, 'b');
        assert_eq!(outcomes.next(), Some((1, 'b')));
        assert_eq!(outcomes.next(), Some((2, 'c')));
        assert_eq!(outcomes.next(), None);
    }
}

//! A fast checksum for telling whether something changed; no protection against anyone who means
//! harm.

/// Sums 8 bytes a step as rustc's FxHash does (rotate, xor, multiply), from a start that is not
/// zero.
#[derive(Debug, Clone)]
pub(crate) struct Checksum(u64);

const MULTIPLIER: u64 = 0x517c_c1b7_2722_0a95;

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    /// Adds bytes, and how many they are.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for &word in words {
            self.step(u64::from_le_bytes(word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.step(u64::from_le_bytes(last));
        self.step(bytes.len() as u64);
    }

    fn step(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(MULTIPLIER);
    }

    /// The sum so far; its high bits depend on all that was added, so they are mixed into the low
    /// ones.
    pub(crate) fn value(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    /// The sum of some bytes.
    pub(crate) fn of(bytes: &[u8]) -> u64 {
        let mut hash = Self::default();
        hash.add(bytes);
        hash.value()
    }
}

#[cfg(test)]
mod tests {
    use super::Checksum;

    #[test]
    fn every_bit_and_the_length_count() {
        let bytes: Vec<u8> = (0..100).collect();
        let whole = Checksum::of(&bytes);
        for at in 0..bytes.len() {
            for bit in [1, 0x80] {
                let mut changed = bytes.clone();
                changed[at] ^= bit;
                assert_ne!(Checksum::of(&changed), whole, "byte {at}");
            }
        }
        assert_ne!(Checksum::of(&[0; 7]), Checksum::of(&[0; 8]));
        assert_ne!(Checksum::of(&[]), Checksum::of(&[0]));
    }
}

//! T5's relative position bias (Raffel et al., 2020): distances fall into buckets, one for each of the near ones and
//! ever wider ones for those further off.

/// Kinds of distance, and from where on there is but one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buckets {
    /// Number of buckets.
    pub count: usize,
    /// Distance from which on all fall into the last bucket.
    pub max_distance: usize,
    /// Whether keys after the query have buckets of their own: half of them (the encoder). Else all such keys count as
    /// the query's own position (the decoder never sees them).
    pub bidirectional: bool,
}

impl Buckets {
    /// The bucket of `distance`, key − query.
    pub(super) fn of(self, distance: isize) -> usize {
        let (count, first, steps) = if self.bidirectional {
            let half = self.count / 2;
            let first = if distance > 0 { half } else { 0 };
            (half, first, distance.unsigned_abs())
        } else {
            (self.count, 0, distance.min(0).unsigned_abs())
        };
        let exact = count / 2;
        if steps < exact {
            return first + steps;
        }
        // In f32, as transformers: on the border of two buckets rounding decides.
        let ratio = (steps as f32 / exact as f32).ln();
        let whole = (self.max_distance as f64 / exact as f64).ln() as f32;
        let further = (ratio / whole * (count - exact) as f32) as usize;
        first + (exact + further).min(count - 1)
    }

    /// Distances that have a bias of their own.
    pub(super) fn distances(self) -> usize {
        2 * self.max_distance + 1
    }

    /// The stored table `[buckets, heads]` as one by distance: `[heads, 2 · max_distance + 1]`, from −max_distance on.
    pub(super) fn by_distance(self, table: &[f32]) -> Vec<f32> {
        let heads = table.len() / self.count.max(1);
        let reach = self.max_distance as isize;
        (0..heads)
            .flat_map(|head| {
                (-reach..=reach).map(move |distance| table[self.of(distance) * heads + head])
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAN: Buckets = Buckets {
        count: 32,
        max_distance: 128,
        bidirectional: true,
    };

    /// Distances at which transformers 5.23's `_relative_position_bucket` changes, with the bucket from there on.
    const ENCODER: [(isize, usize); 17] = [
        (0, 0),
        (1, 17),
        (2, 18),
        (3, 19),
        (4, 20),
        (5, 21),
        (6, 22),
        (7, 23),
        (8, 24),
        (12, 25),
        (16, 26),
        (23, 27),
        (32, 28),
        (46, 29),
        (64, 30),
        (91, 31),
        (5000, 31),
    ];

    #[test]
    fn the_encoders_buckets() {
        for pair in ENCODER.windows(2) {
            let ((from, bucket), (to, _)) = (pair[0], pair[1]);
            for distance in from..to {
                assert_eq!(FLAN.of(distance), bucket, "{distance}");
                // The same before the query, without the half that is for after it.
                assert_eq!(FLAN.of(-distance), bucket % 16, "-{distance}");
            }
        }
    }

    #[test]
    fn the_decoders_buckets() {
        let decoder = Buckets {
            bidirectional: false,
            ..FLAN
        };
        for (distance, bucket) in [
            (3, 0),
            (0, 0),
            (-1, 1),
            (-15, 15),
            (-16, 16),
            (-18, 16),
            (-19, 17),
            (-20, 17),
            (-21, 18),
            (-64, 26),
            (-112, 30),
            (-113, 31),
            (-128, 31),
            (-5000, 31),
        ] {
            assert_eq!(decoder.of(distance), bucket, "{distance}");
        }
    }

    #[test]
    fn tables_are_spread_out_by_distance() {
        let small = Buckets {
            count: 8,
            max_distance: 5,
            bidirectional: true,
        };
        // Of two heads, the second's values are negative.
        let table: Vec<f32> = (0..8).flat_map(|b| [b as f32, -(b as f32)]).collect();
        let spread = small.by_distance(&table);
        assert_eq!(spread.len(), 2 * 11);
        assert_eq!(spread[..11], [3., 3., 2., 2., 1., 0., 5., 6., 6., 7., 7.]);
        assert!(
            spread[..11]
                .iter()
                .zip(&spread[11..])
                .all(|(a, b)| *a == -b)
        );
    }
}

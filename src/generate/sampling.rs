use super::{Candidate, GenerateError, Warp};

/// The random numbers of one text: the same on every platform, and whatever else is in the batch,
/// since each text has its own stream. SplitMix64 (Steele, Lea, Flood 2014) over a counter; not for
/// secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RandomStream {
    state: u64,
}

/// SplitMix64's increment: 2⁶⁴ divided by the golden ratio, odd.
const INCREMENT: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl RandomStream {
    /// The stream numbered `stream` of `seed`. Number the texts of a request from 0; give requests
    /// that should differ seeds or streams that differ.
    pub fn new(seed: u64, stream: u64) -> Self {
        let start = mix(seed.wrapping_add(INCREMENT));
        Self {
            state: mix(start ^ stream.wrapping_mul(INCREMENT)),
        }
    }

    /// The next 64 random bits.
    pub fn next_bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(INCREMENT);
        mix(self.state)
    }

    /// The next number in `[0, 1)`, a multiple of 2⁻⁵³.
    pub fn next_unit(&mut self) -> f64 {
        (self.next_bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A token that was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// Token id.
    pub token: u32,
    /// Its score as it was handed in: its log-probability for the model, where log-probabilities were.
    pub score: f32,
    /// The natural logarithm of the probability it was drawn with, after the warp.
    pub warped_log_prob: f32,
}

/// Draws one token of a row: `candidates` are the row's best ([`Warp::candidates_needed`]) or all.
/// Takes one number from `random`.
///
/// # Errors
/// [`GenerateError::NotANumber`] on a NaN score, [`GenerateError::NoToken`] where all are −∞.
pub fn sample(
    warp: &Warp,
    candidates: &[Candidate],
    random: &mut RandomStream,
) -> Result<SampledToken, GenerateError> {
    if let Some(bad) = candidates.iter().find(|c| c.score.is_nan()) {
        return Err(GenerateError::NotANumber { token: bad.token });
    }
    let weights = warp.apply(candidates);
    let mut left = random.next_unit();
    let drawn = weights.iter().find(|w| {
        left -= w.probability;
        left < 0.0
    });
    // Rounding may leave a rest after the last: it belongs to the last.
    let drawn = drawn.or(weights.last()).ok_or(GenerateError::NoToken)?;
    Ok(SampledToken {
        token: drawn.token,
        score: drawn.score,
        warped_log_prob: drawn.probability.ln() as f32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Warp = Warp {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        typical_p: 1.0,
        epsilon_cutoff: 0.0,
        eta_cutoff: 0.0,
    };

    fn row(probabilities: &[f32]) -> Vec<Candidate> {
        (0..)
            .zip(probabilities)
            .map(|(token, p)| Candidate {
                token,
                score: p.ln(),
            })
            .collect()
    }

    #[test]
    fn the_stream_never_changes() {
        // Frozen: a change here changes every user's sampled texts.
        let mut stream = RandomStream::new(42, 0);
        let bits: Vec<u64> = (0..3).map(|_| stream.next_bits()).collect();
        assert_eq!(bits, FROZEN);
        // SplitMix64's published first output for state 0.
        assert_eq!(mix(INCREMENT), 0xE220_A839_7B1D_CDAF);
    }
    const FROZEN: [u64; 3] = [
        14241928491073317330,
        7040222520599051659,
        13020563333957079210,
    ];

    #[test]
    fn streams_and_seeds_differ() {
        let mut firsts: Vec<u64> = (0..20)
            .flat_map(|seed| (0..20).map(move |s| RandomStream::new(seed, s).next_bits()))
            .collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 400);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let probabilities = [0.1, 0.0, 0.6, 0.3];
        let mut counts = [0; 4];
        let mut random = RandomStream::new(7, 3);
        for _ in 0..20_000 {
            let drawn = sample(&PLAIN, &row(&probabilities), &mut random).unwrap();
            counts[drawn.token as usize] += 1;
            let expected = probabilities[drawn.token as usize].ln();
            assert!((drawn.warped_log_prob - expected).abs() < 1e-6);
        }
        for (count, p) in counts.iter().zip(probabilities) {
            // Five standard deviations of a binomial of 20 000 draws are at most 350.
            assert!((*count as f32 - 20_000.0 * p).abs() <= 350.0, "{counts:?}");
        }
        assert_eq!(counts[1], 0);
    }

    #[test]
    fn the_order_of_the_candidates_does_not_matter() {
        let forth = row(&[0.25, 0.25, 0.4, 0.1]);
        let mut back = forth.clone();
        back.reverse();
        let (mut a, mut b) = (RandomStream::new(1, 1), RandomStream::new(1, 1));
        for _ in 0..50 {
            assert_eq!(
                sample(&PLAIN, &forth, &mut a).unwrap(),
                sample(&PLAIN, &back, &mut b).unwrap()
            );
        }
    }

    #[test]
    fn bad_rows_are_errors() {
        let mut random = RandomStream::new(0, 0);
        let nan = [Candidate {
            token: 4,
            score: f32::NAN,
        }];
        let banned = row(&[0.0, 0.0]);
        assert!(matches!(
            sample(&PLAIN, &nan, &mut random),
            Err(GenerateError::NotANumber { token: 4 })
        ));
        assert!(matches!(
            sample(&PLAIN, &banned, &mut random),
            Err(GenerateError::NoToken)
        ));
    }
}

use super::{
    Candidate, GenerationOptions,
    processors::{falling, sort_best_first},
};

/// How scores become the distribution a token is drawn from: temperature, then top-k, top-p, min-p,
/// typical, epsilon and eta cutoffs (transformers' order and rules).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warp {
    /// Divides the scores.
    pub temperature: f32,
    /// Keeps the scores that are at least the `top_k`-th best; 0 is off.
    pub top_k: usize,
    /// Keeps the smallest set of best tokens whose probabilities sum to at least this; 1 is off.
    pub top_p: f64,
    /// Keeps tokens at least this share as probable as the best; 0 is off.
    pub min_p: f64,
    /// Keeps the tokens of nearly the entropy's surprise whose probabilities sum to this; 1 is off.
    pub typical_p: f64,
    /// Keeps tokens at least so probable; 0 is off.
    pub epsilon_cutoff: f64,
    /// Keeps tokens at least as probable as the smaller of this and `√this · e^−entropy`; 0 is off.
    pub eta_cutoff: f64,
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightedToken {
    /// Token id.
    pub token: u32,
    /// Its score as it was handed in.
    pub score: f32,
    /// Its probability among those kept.
    pub probability: f64,
}

impl Warp {
    /// The warp that `options` asks for.
    pub fn from_options(options: &GenerationOptions) -> Self {
        Self {
            temperature: options.temperature as f32,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            typical_p: options.typical_p,
            epsilon_cutoff: options.epsilon_cutoff,
            eta_cutoff: options.eta_cutoff,
        }
    }

    /// How many of a row's best candidates [`Warp::apply`] must see; `None`: the whole row.
    pub fn candidates_needed(&self) -> Option<usize> {
        (self.top_k > 0).then_some(self.top_k)
    }

    /// The tokens kept and their probabilities, best first. `candidates` are a row's best (at least
    /// `top_k`, in any order) or the whole row; scores may be logits or log-probabilities.
    /// Empty where no candidate has a finite score.
    ///
    /// As in transformers all tokens that tie with the `top_k`-th are kept; where the GPU cut its
    /// list there, those beyond the cut are missing.
    pub fn apply(&self, candidates: &[Candidate]) -> Vec<WeightedToken> {
        let mut kept: Vec<Candidate> = candidates
            .iter()
            .copied()
            .filter(|c| c.score.is_finite())
            .collect();
        sort_best_first(&mut kept);
        self.keep_top_k(&mut kept);
        let mut weights = self.probabilities(&kept);
        type Rule = fn(&Warp, &[Candidate], &[f64]) -> Vec<bool>;
        let rules: [(bool, Rule); 5] = [
            (self.top_p < 1.0, Self::below_top_p),
            (self.min_p > 0.0, Self::below_min_p),
            (self.typical_p < 1.0, Self::not_typical),
            (self.epsilon_cutoff > 0.0, Self::below_epsilon),
            (self.eta_cutoff > 0.0, Self::below_eta),
        ];
        for (_, removed) in rules.into_iter().filter(|(is_on, _)| *is_on) {
            let removed = removed(self, &kept, &weights);
            kept = keep_others(kept, &removed);
            weights = self.probabilities(&kept);
        }
        kept.iter()
            .zip(weights)
            .map(|(c, probability)| WeightedToken {
                token: c.token,
                score: c.score,
                probability,
            })
            .collect()
    }

    fn keep_top_k(&self, sorted: &mut Vec<Candidate>) {
        if self.top_k == 0 || self.top_k >= sorted.len() {
            return;
        }
        let least = sorted[self.top_k - 1].score;
        let end = sorted.partition_point(|c| falling(c.score, least).is_le());
        sorted.truncate(end);
    }

    /// Softmax of the scores divided by the temperature.
    fn probabilities(&self, sorted: &[Candidate]) -> Vec<f64> {
        let Some(best) = sorted.first() else {
            return Vec::new();
        };
        // The difference first, in f64: a score over a tiny temperature is infinite in f32, and so would be all.
        let temperature = f64::from(self.temperature);
        let weights: Vec<f64> = sorted
            .iter()
            .map(|c| ((f64::from(c.score) - f64::from(best.score)) / temperature).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    /// Which of the tokens to drop: going up from the least likely, those whose probabilities sum
    /// to no more than 1 − `top_p`. The best always stays. Of equal scores the lower token goes first.
    fn below_top_p(&self, sorted: &[Candidate], probabilities: &[f64]) -> Vec<bool> {
        let mut rising: Vec<usize> = (0..sorted.len()).collect();
        rising.sort_by(|&a, &b| {
            falling(sorted[b].score, sorted[a].score).then(sorted[a].token.cmp(&sorted[b].token))
        });
        rising.pop(); // the best stays
        let mut removed = vec![false; sorted.len()];
        let mut sum = 0.0;
        for index in rising {
            sum += probabilities[index];
            removed[index] = sum as f32 <= (1.0 - self.top_p) as f32;
        }
        removed
    }

    fn below_min_p(&self, _: &[Candidate], probabilities: &[f64]) -> Vec<bool> {
        let best = probabilities.first().copied().unwrap_or_default();
        below(probabilities, self.min_p * best)
    }

    /// Which of the tokens to drop: those whose surprise is further from the entropy than that of the token
    /// at which the probabilities, going outwards from the entropy, reach `typical_p`.
    fn not_typical(&self, _: &[Candidate], probabilities: &[f64]) -> Vec<bool> {
        let entropy = entropy(probabilities);
        let distance = |index: usize| (-probabilities[index].ln() - entropy).abs();
        let mut nearest: Vec<usize> = (0..probabilities.len()).collect();
        nearest.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)));
        let mut sum = 0.0;
        let within = nearest.iter().take_while(|&&index| {
            sum += probabilities[index];
            (sum as f32) < self.typical_p as f32
        });
        let last = within.count().min(nearest.len().saturating_sub(1));
        let Some(&last) = nearest.get(last) else {
            return Vec::new();
        };
        let mut removed: Vec<bool> = (0..probabilities.len())
            .map(|index| distance(index) > distance(last))
            .collect();
        removed[nearest[0]] = false;
        removed
    }

    fn below_epsilon(&self, _: &[Candidate], probabilities: &[f64]) -> Vec<bool> {
        below(probabilities, self.epsilon_cutoff)
    }

    fn below_eta(&self, _: &[Candidate], probabilities: &[f64]) -> Vec<bool> {
        let bound = self.eta_cutoff.sqrt() * (-entropy(probabilities)).exp();
        below(probabilities, self.eta_cutoff.min(bound))
    }
}

/// Which probabilities, falling, are below `least`; those as high as the best are not.
fn below(probabilities: &[f64], least: f64) -> Vec<bool> {
    let best = probabilities.first().copied().unwrap_or_default();
    let removed = |&p: &f64| (p as f32) < least as f32 && p < best;
    probabilities.iter().map(removed).collect()
}

/// The entropy of a distribution, in nats.
fn entropy(probabilities: &[f64]) -> f64 {
    let terms = probabilities.iter().filter(|&&p| p > 0.0);
    -terms.map(|p| p * p.ln()).sum::<f64>()
}

fn keep_others(candidates: Vec<Candidate>, removed: &[bool]) -> Vec<Candidate> {
    candidates
        .into_iter()
        .zip(removed)
        .filter_map(|(candidate, &gone)| (!gone).then_some(candidate))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warped(warp: Warp, scores: &[f32]) -> Vec<(u32, f64)> {
        let row: Vec<Candidate> = (0..)
            .zip(scores)
            .map(|(token, &score)| Candidate { token, score })
            .collect();
        let kept = warp.apply(&row);
        kept.iter().map(|w| (w.token, w.probability)).collect()
    }

    const OFF: Warp = Warp {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        typical_p: 1.0,
        epsilon_cutoff: 0.0,
        eta_cutoff: 0.0,
    };

    fn tokens(warp: Warp, scores: &[f32]) -> Vec<u32> {
        warped(warp, scores).iter().map(|w| w.0).collect()
    }

    #[test]
    fn a_tiny_temperature_leaves_the_best() {
        let coldest = Warp {
            temperature: f32::MIN_POSITIVE,
            ..OFF
        };
        let kept = warped(coldest, &[-3.0, 5.0, 4.0, -90.0]);
        assert_eq!((kept[0], kept[1].1), ((1, 1.0), 0.0));
    }

    #[test]
    fn ties_with_the_kth_stay() {
        let top = Warp { top_k: 2, ..OFF };
        assert_eq!(tokens(top, &[1.0, 2.0, 1.0, 0.0, 1.0]), [1, 0, 2, 4]);
        assert_eq!(tokens(OFF, &[1.0, f32::NEG_INFINITY, 2.0]), [2, 0]);
        assert_eq!(top.candidates_needed(), Some(2));
        assert_eq!(OFF.candidates_needed(), None);
    }

    #[test]
    fn top_p_keeps_the_best_whatever_it_is() {
        let nucleus = |top_p| Warp { top_p, ..OFF };
        let thirds = [0.2f32.ln(), 0.5f32.ln(), 0.3f32.ln()];
        assert_eq!(tokens(nucleus(0.01), &thirds), [1]);
        assert_eq!(tokens(nucleus(1e-9), &thirds), [1]);
        assert_eq!(tokens(nucleus(0.75), &thirds), [1, 2]);
        assert_eq!(tokens(nucleus(0.85), &thirds), [1, 2, 0]);
        // Equal scores: the ascending order drops the lower tokens first.
        assert_eq!(tokens(nucleus(0.4), &[0.0, 0.0, 0.0, 0.0]), [2, 3]);
    }

    #[test]
    fn temperature_sharpens() {
        let cold = Warp {
            temperature: 0.5,
            ..OFF
        };
        let ratio = |w: Vec<(u32, f64)>| w[0].1 / w[1].1;
        assert!((ratio(warped(cold, &[0.0, 1.0])) - 2f64.exp()).abs() < 1e-9);
    }

    #[test]
    fn nothing_finite_keeps_nothing() {
        assert!(warped(OFF, &[f32::NEG_INFINITY, f32::NAN]).is_empty());
        assert!(warped(OFF, &[]).is_empty());
    }
}

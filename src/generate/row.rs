use super::GenerationOptions;

/// Why a text ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FinishReason {
    /// Its last token is an end token.
    EndToken,
    /// It has `max_new_tokens` tokens.
    #[default]
    Length,
    /// A text that ends it has come up in it.
    StopString,
}

/// A finished text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The generated tokens, the end token included; no prompt, no padding.
    pub tokens: Vec<u32>,
    /// Greedy and sampling: the sum of the log-probabilities. Beams: that sum divided by
    /// `length ^ length_penalty` (transformers' `sequences_scores`).
    pub score: f32,
    /// Why it ended.
    pub finish: FinishReason,
}

/// One text being generated greedily or by sampling.
#[derive(Clone, Debug)]
pub struct Row {
    tokens: Vec<u32>,
    log_prob: f64,
    finish: Option<FinishReason>,
    max_new_tokens: usize,
    eos_token_ids: Vec<u32>,
}

impl Row {
    /// An empty text that stops by `options`.
    pub fn new(options: &GenerationOptions) -> Self {
        Self {
            tokens: Vec::new(),
            log_prob: 0.0,
            finish: None,
            max_new_tokens: options.max_new_tokens,
            eos_token_ids: options.eos_token_ids.clone(),
        }
    }

    /// Appends a token and its log-probability; says whether, and why, the text is now finished.
    /// On a finished text it changes nothing: steps that were already under way may be handed in.
    pub fn push(&mut self, token: u32, log_prob: f32) -> Option<FinishReason> {
        if self.finish.is_none() {
            self.tokens.push(token);
            self.log_prob += f64::from(log_prob);
            self.finish = if self.eos_token_ids.contains(&token) {
                Some(FinishReason::EndToken)
            } else if self.tokens.len() >= self.max_new_tokens {
                Some(FinishReason::Length)
            } else {
                None
            };
        }
        self.finish
    }

    /// Ends the text here, for a text has come up that ends it. An end token counts before it.
    pub fn stop(&mut self) {
        if self.finish != Some(FinishReason::EndToken) {
            self.finish = Some(FinishReason::StopString);
        }
    }

    /// Whether nothing more will be appended.
    pub fn is_done(&self) -> bool {
        self.finish.is_some()
    }

    /// The tokens so far, the end token included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Sum of the tokens' log-probabilities so far.
    pub fn log_prob(&self) -> f32 {
        self.log_prob as f32
    }

    /// The text as it stands (one that was cut short counts as ended by length).
    pub fn finish(self) -> Generated {
        Generated {
            score: self.log_prob as f32,
            tokens: self.tokens,
            finish: self.finish.unwrap_or(FinishReason::Length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row::new(&GenerationOptions {
            max_new_tokens: 3,
            eos_token_ids: vec![2, 9],
            ..Default::default()
        })
    }

    #[test]
    fn an_end_token_is_kept_and_what_follows_is_not() {
        let mut row = row();
        assert_eq!(row.push(5, -0.5), None);
        assert_eq!(row.push(9, -0.25), Some(FinishReason::EndToken));
        assert_eq!(row.push(7, -4.0), Some(FinishReason::EndToken));
        let text = row.finish();
        assert_eq!(text.tokens, [5, 9]);
        assert_eq!(text.score, -0.75);
    }

    #[test]
    fn a_text_that_is_stopped_takes_nothing_more() {
        let mut row = row();
        row.push(5, -0.5);
        row.stop();
        assert_eq!(row.push(7, -4.0), Some(FinishReason::StopString));
        let text = row.finish();
        assert_eq!((text.tokens, text.score), (vec![5], -0.5));
        assert_eq!(text.finish, FinishReason::StopString);
        let mut row = self::row();
        row.push(9, 0.0);
        row.stop();
        assert_eq!(row.finish().finish, FinishReason::EndToken);
    }

    #[test]
    fn length_ends_a_text() {
        let mut row = row();
        row.push(5, 0.0);
        row.push(5, 0.0);
        assert!(!row.is_done());
        assert_eq!(row.push(5, 0.0), Some(FinishReason::Length));
        assert_eq!(row.tokens(), [5, 5, 5]);
        // At the last place an end token still counts as one.
        let mut row = self::row();
        row.push(5, 0.0);
        row.push(5, 0.0);
        assert_eq!(row.push(2, 0.0), Some(FinishReason::EndToken));
    }
}

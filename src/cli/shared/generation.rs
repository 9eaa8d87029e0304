//! Generation flags, shared by the commands that write text.

use std::collections::BTreeMap;

use crate::generate::GenerationOverrides;
use crate::task::{CaptionOptions, Preset, VqaOptions, Work};

use super::output::Output;

/// How to choose tokens. Flags left out keep the preset's or the checkpoint's value.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Generation")]
pub struct GenerationArgs {
    /// Text that the model continues; for vqa with {} where the question goes (once: anything else
    /// is an error)
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Most tokens to generate, the prompt not counted
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Fewest tokens to generate
    #[arg(long, value_name = "N")]
    min_new_tokens: Option<usize>,
    /// Beams; 1 is greedy
    #[arg(long, value_name = "N")]
    beams: Option<usize>,
    /// Exponent of the length in a beam's score: above 0 favours long texts
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// Stop a beam search as soon as enough texts are finished
    #[arg(long)]
    early_stopping: bool,
    /// Draw tokens at random
    #[arg(long)]
    sample: bool,
    /// Flatter (above 1) or sharper distribution to draw from
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Draw from the N likeliest; 0 is no limit
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Draw from the likeliest that make up this share
    #[arg(long, value_name = "X")]
    top_p: Option<f64>,
    /// The same seed gives the same text
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Divides the score of tokens already said; 1 is off
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// No run of N tokens twice; 0 is off
    #[arg(long, value_name = "N")]
    no_repeat_ngram: Option<usize>,
    /// Text before whose first occurrence a text ends; repeat it for more
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Texts for each image or question, the best first
    #[arg(long, visible_alias = "num-answers", value_name = "K")]
    num_captions: Option<usize>,
    /// Show tokens as they come (greedy and sampling)
    #[arg(long)]
    pub stream: bool,
    /// Images at a time: a number, or auto
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = parse_batch_size)]
    pub batch_size: BatchSize,
    /// Prompt, image size, beams and stop rules of this system
    #[arg(long, value_enum, default_value_t)]
    pub preset: Preset,
}

/// `--batch-size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize(pub Option<usize>);

pub fn parse_batch_size(text: &str) -> Result<BatchSize, String> {
    match text {
        "auto" => Ok(BatchSize(None)),
        _ => match text.parse() {
            Ok(0) | Err(_) => Err("give a number of 1 or more, or auto".into()),
            Ok(size) => Ok(BatchSize(Some(size))),
        },
    }
}

impl GenerationArgs {
    /// The flags that were given, as far as texts depend on them, for the record of a run.
    pub fn given(&self) -> BTreeMap<String, String> {
        // Every field by name, so that a new one is not forgotten here.
        let Self {
            prompt,
            max_new_tokens,
            min_new_tokens,
            beams,
            length_penalty,
            early_stopping,
            sample,
            temperature,
            top_k,
            top_p,
            seed,
            repetition_penalty,
            no_repeat_ngram,
            stop,
            num_captions,
            stream: _,
            batch_size: _,
            preset,
        } = self;
        fn text(value: &Option<impl ToString>) -> Option<String> {
            value.as_ref().map(ToString::to_string)
        }
        let on = |flag: &bool| flag.then(|| "on".to_owned());
        [
            ("--prompt", prompt.clone()),
            ("--max-new-tokens", text(max_new_tokens)),
            ("--min-new-tokens", text(min_new_tokens)),
            ("--beams", text(beams)),
            ("--length-penalty", text(length_penalty)),
            ("--early-stopping", on(early_stopping)),
            ("--sample", on(sample)),
            ("--temperature", text(temperature)),
            ("--top-k", text(top_k)),
            ("--top-p", text(top_p)),
            ("--seed", text(seed)),
            ("--repetition-penalty", text(repetition_penalty)),
            ("--no-repeat-ngram", text(no_repeat_ngram)),
            ("--stop", (!stop.is_empty()).then(|| format!("{stop:?}"))),
            ("--num-captions", text(num_captions)),
            ("--preset", Some(format!("{preset:?}").to_lowercase())),
        ]
        .into_iter()
        .filter_map(|(flag, value)| Some((flag.to_owned(), value?)))
        .collect()
    }

    /// How to caption.
    pub fn caption_options(&self) -> CaptionOptions {
        CaptionOptions {
            prompt: self.prompt.clone(),
            preset: self.preset,
            generation: self.overrides(),
            batch_size: self.batch_size.0,
        }
    }

    /// How to answer.
    pub fn vqa_options(&self) -> VqaOptions {
        VqaOptions {
            prompt: self.prompt.clone(),
            preset: self.preset,
            generation: self.overrides(),
            batch_size: self.batch_size.0,
        }
    }

    /// What to have room for.
    pub fn work(&self) -> Work {
        // LAVIS and mmpretrain search with up to 5 beams; transformers as the checkpoint says.
        let is_own = self.preset == Preset::Hf;
        Work {
            batch_size: if self.stream {
                Some(1)
            } else {
                self.batch_size.0
            },
            beams: self.beams.or((!is_own).then_some(5)),
            new_tokens: self.max_new_tokens.or((!is_own).then_some(30)),
        }
    }

    /// Says that texts shown as they come are made one at a time, where another number is asked for.
    pub fn warn_of_batch_size(&self, output: &Output) {
        if self.stream && self.batch_size.0.is_some_and(|size| size > 1) {
            output.warning("--batch-size: no effect with --stream, which shows one text at a time");
        }
    }

    /// Whether several texts an item are asked for.
    pub fn several_texts(&self) -> bool {
        self.num_captions.is_some_and(|texts| texts > 1)
    }

    /// The flags that were given.
    fn overrides(&self) -> GenerationOverrides {
        // Beams and sampling exclude each other: whichever is asked for wins over a preset's or
        // checkpoint's other.
        let beams = self.beams.or(self.sample.then_some(1));
        let sample = if self.sample {
            Some(true)
        } else {
            self.beams.map(|_| false)
        };
        GenerationOverrides {
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
            num_beams: beams,
            length_penalty: self.length_penalty,
            early_stopping: self
                .early_stopping
                .then_some(crate::generate::EarlyStopping::True),
            do_sample: sample,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram,
            num_return_sequences: self.num_captions,
            stop: (!self.stop.is_empty()).then(|| self.stop.clone()),
            ..GenerationOverrides::default()
        }
    }
}

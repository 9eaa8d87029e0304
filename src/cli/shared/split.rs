//! `--split`: which images of a file that holds several splits.

use std::path::Path;

use crate::eval::CaptionData;

use super::output::Output;

#[derive(Debug, Clone, Default, clap::Args)]
pub struct SplitArgs {
    /// Split to read from files that hold several, as Karpathy's datasets do; test if not given
    #[arg(long, value_name = "SPLIT")]
    split: Option<String>,
    /// Whether another flag than this one has named it.
    #[arg(skip)]
    implied: bool,
}

impl SplitArgs {
    /// The split that another flag names.
    pub fn implied(name: &str) -> Self {
        Self {
            split: Some(name.to_owned()),
            implied: true,
        }
    }

    /// The split to read.
    pub fn name(&self) -> &str {
        self.split.as_deref().unwrap_or("test")
    }

    /// Whether the command line names one.
    pub fn is_given(&self) -> bool {
        self.split.is_some() && !self.implied
    }

    /// Says that the split does nothing where `annotations`, which could be read, hold none: any
    /// other name finds as much in them.
    pub fn warn_if_idle(&self, annotations: &Path, output: &Output) {
        let other = format!("not {}", self.name());
        if self.is_given() && CaptionData::read(annotations, &other).is_ok() {
            let remedy = format!("on {}, which has no splits", annotations.display());
            output.idle(&["--split"], &remedy);
        }
    }
}

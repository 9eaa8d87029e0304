//! The parts that a checkpoint file of LAVIS or mmpretrain lacks, as the command line names them.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::convert::{Task, kind_of};
use crate::task::{CheckpointFiles, CheckpointParts};

use super::hub::resolve;
use super::output::Output;

/// Where the help lists these flags.
const HEADING: &str = "Parts that a .pth file lacks";

/// What a checkpoint file lacks.
#[derive(Debug, Clone, clap::Args)]
pub struct Parts {
    /// The vision transformer: LAVIS's eva_vit_g.pth
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE")]
    vit: Option<PathBuf>,
    /// The language model: a Hugging Face folder, or a name on the hub such as facebook/opt-2.7b
    #[arg(long, global = true, help_heading = HEADING, value_name = "DIR|NAME")]
    llm: Option<PathBuf>,
    /// The model's config.json (Hugging Face's) where the sizes are not a published model's
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder with the tokenizer where none lies beside the file or, for a generative model, in
    /// --llm
    #[arg(long, global = true, help_heading = HEADING, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
}

impl Parts {
    /// The same for the library.
    pub fn to_options(&self) -> CheckpointParts {
        CheckpointParts {
            vit: self.vit.clone(),
            llm: self.llm.clone(),
            config: self.config.clone(),
            tokenizer: self.tokenizer.clone(),
        }
    }

    /// The flags given, with their values.
    pub fn given(&self) -> impl Iterator<Item = (String, String)> {
        let flags = [
            ("--vit", &self.vit),
            ("--llm", &self.llm),
            ("--config", &self.config),
            ("--tokenizer", &self.tokenizer),
        ];
        flags.into_iter().filter_map(|(flag, path)| {
            let path = path.as_ref()?.display().to_string();
            Some((flag.to_owned(), path))
        })
    }

    /// Turns a language model's name on the hub into its folder. One that the checkpoint at `path`
    /// has no use for is not fetched; what is wrong with that checkpoint, opening it says.
    pub fn find_llm(&mut self, path: &Path, output: &Output) -> Result<(), Error> {
        let of_use = || kind_of(path).is_ok_and(|kind| kind.task == Task::Generation);
        if let Some(llm) = &self.llm
            && of_use()
        {
            self.llm = Some(resolve(llm, output)?);
        }
        Ok(())
    }

    /// The files of the checkpoint at `path`, completed by these.
    pub fn open(&self, path: &Path) -> Result<CheckpointFiles, Error> {
        CheckpointFiles::open_with_parts(path, &self.to_options())
    }
}

//! What the command line says, and what the environment says for it: flags that do nothing are
//! warned of, and what is wrong with a variable is said by its name.

use std::ffi::OsString;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::files::environment::{expand, is_blank, set};

use super::Cli;

/// A flag that a variable stands for.
#[derive(Clone, Debug)]
pub struct FlagVariable {
    /// As in `--model`; what it is where there is no flag.
    pub flag: String,
    /// As in `BLIP2_WGPU_MODEL`.
    pub variable: String,
    /// What it holds, as a path is read.
    pub value: String,
}

/// A variable that no flag stands for.
const SHADERS: &str = "BLIP2_WGPU_SHADERS";

impl FlagVariable {
    /// The variable, if it is set.
    fn of(name: &str, flag: String) -> Option<Self> {
        let get = |name: &str| std::env::var_os(name);
        let value = set(name, &get)?;
        let value = expand(&value, &get).unwrap_or(value);
        Some(Self {
            flag,
            variable: name.to_owned(),
            value: value.to_string_lossy().into_owned(),
        })
    }
}

/// Where the values of flags come from.
#[derive(Debug)]
pub struct Given {
    /// The flags of the command line, by their fields.
    flags: Vec<String>,
    /// Those that variables stand for.
    pub variables: Vec<FlagVariable>,
}

impl Given {
    /// Whether the command line has the flag of this field.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given == flag)
    }

    fn new(command: &Command, matches: &ArgMatches) -> Self {
        let mut levels = vec![matches];
        while let Some((_, below)) = levels.last().and_then(|it| it.subcommand()) {
            levels.push(below);
        }
        let from = |source| {
            let levels = levels.iter();
            levels.flat_map(move |level| {
                let ids = level.ids().map(|id| id.as_str());
                ids.filter(move |id| level.value_source(id) == Some(source))
            })
        };
        let flags = from(ValueSource::CommandLine).map(str::to_owned).collect();
        let of_environment: Vec<&str> = from(ValueSource::EnvVariable).collect();
        let stands_for = |arg: &clap::Arg| {
            let is_used = of_environment.contains(&arg.get_id().as_str());
            let name = arg.get_env().filter(|_| is_used)?.to_str()?;
            FlagVariable::of(name, format!("--{}", arg.get_long()?))
        };
        let variables = command.get_arguments().filter_map(stands_for);
        let shaders = FlagVariable::of(SHADERS, "the shaders".into());
        Self {
            flags,
            variables: variables.chain(shaders).collect(),
        }
    }
}

/// Reads the command line. Help, version and what cannot be understood end the process at once.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> (Cli, Given) {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // A blank variable is one that is not set.
    let command = Cli::command().mut_args(|arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        match value.is_some_and(|value| is_blank(&value)) {
            true => arg.env(Resettable::Reset),
            false => arg,
        }
    });
    let read = || {
        let matches = command.clone().try_get_matches_from(&arguments)?;
        Ok((
            Cli::from_arg_matches(&matches)?,
            Given::new(&command, &matches),
        ))
    };
    read().unwrap_or_else(|error| named(error, &command, &arguments).exit())
}

/// The error, if it is one of a variable's value, with the variable's name.
fn named(mut error: clap::Error, command: &Command, arguments: &[OsString]) -> clap::Error {
    // Only when it is built does it know how its flags are shown.
    let mut command = command.clone();
    command.build();
    let is_of_value = matches!(
        error.kind(),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::InvalidUtf8
    );
    let at_fault = command.get_arguments().find_map(|arg| {
        let shown = arg.to_string();
        let is_named = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(named)) => *named == shown,
            _ => false,
        };
        let variable = arg
            .get_env()
            .filter(|name| std::env::var_os(name).is_some())?;
        let flag = format!("--{}", arg.get_long()?);
        let is_given = arguments.iter().any(|argument| {
            let after = argument.as_encoded_bytes().strip_prefix(flag.as_bytes());
            after.is_some_and(|after| after.is_empty() || after[0] == b'=')
        });
        (is_named && !is_given).then(|| format!("{} (for {shown})", variable.display()))
    });
    if let (Some(variable), true) = (at_fault, is_of_value) {
        error.insert(ContextKind::InvalidArg, ContextValue::String(variable));
    }
    error
}

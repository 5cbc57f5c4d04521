//! How a process was called: its command line, from which its settings can be read again and again.

use std::{fmt, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, builder::TypedValueParser as _};

use super::{
    ConfigError,
    key::{Key, Presence, Shape, Tier},
    settings::{Settings, Sources, read_file},
};

/// What the process is to do with its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Work.
    Run,
    /// Say whether they are right, and exit.
    Check,
    /// Show what is in force, and exit.
    Print,
}

/// How a process was called.
#[derive(Clone)]
pub struct Invocation {
    tier: &'static Tier,
    file: Option<PathBuf>,
    flags: Vec<(&'static str, String)>,
    mode: Mode,
}

/// Which options were given, without their values: one may be a secret.
impl fmt::Debug for Invocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags: Vec<&str> = self.flags.iter().map(|(path, _)| *path).collect();
        formatter
            .debug_struct("Invocation")
            .field("tier", &self.tier.program)
            .field("file", &self.file)
            .field("flags", &flags)
            .field("mode", &self.mode)
            .finish()
    }
}

impl Invocation {
    /// Of this process. Answers `--help` and `--version`, and ends the process on an option that is not understood,
    /// with status 2.
    #[must_use]
    pub fn of_this_process(tier: &'static Tier, version: &'static str) -> Self {
        Self::from_matches(tier, &command(tier, version).get_matches())
    }

    /// Of words as a shell gives them, the program's name first.
    ///
    /// # Errors
    /// When an option is not understood.
    pub fn from_words<I, W>(tier: &'static Tier, words: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = W>,
        W: Into<std::ffi::OsString> + Clone,
    {
        command(tier, "").try_get_matches_from(words).map(|matches| Self::from_matches(tier, &matches))
    }

    fn from_matches(tier: &'static Tier, matches: &ArgMatches) -> Self {
        let mut flags = Vec::new();
        for key in tier.keys {
            let given: Vec<&str> =
                matches.get_many::<String>(key.path).into_iter().flatten().map(String::as_str).collect();
            if !given.is_empty() {
                flags.push((key.path, given.join(",")));
            }
        }
        let mode = match (matches.get_flag("check-config"), matches.get_flag("print-config")) {
            (true, _) => Mode::Check,
            (false, true) => Mode::Print,
            (false, false) => Mode::Run,
        };
        // An empty variable is none, as for every key.
        let file = matches.get_one("config").filter(|path: &&PathBuf| !path.as_os_str().is_empty()).cloned();
        Self { tier, file, flags, mode }
    }

    /// What the process is.
    #[must_use]
    pub const fn tier(&self) -> &'static Tier {
        self.tier
    }

    /// What the process is to do.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Reads the settings from the file as it is now, this process's environment, and the command line.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let text = self.file.as_deref().map(read_file).transpose()?;
        let prefix = self.tier.variable_prefix();
        // What is no UTF-8 stays to be seen: in the value that is refused, or shown.
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok().filter(|name| name.starts_with(&prefix))?;
                Some((name, value.to_string_lossy().into_owned()))
            })
            .collect();
        Ok(Settings::collect(
            self.tier,
            &Sources {
                file: self.file.as_deref().zip(text.as_deref()),
                variables: &variables,
                flags: &self.flags,
            },
        ))
    }
}

/// The command line of a tier: its own options, and one for each key.
fn command(tier: &'static Tier, version: &'static str) -> Command {
    let own = [
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::builder::OsStringValueParser::new().map(PathBuf::from))
            .env(format!("{}CONFIG", tier.variable_prefix()))
            .help("The configuration file, TOML; every key can be given without it; an empty name is none"),
        Arg::new("check-config")
            .long("check-config")
            .action(ArgAction::SetTrue)
            .help("Check the configuration and the files that it names, and exit: 0 when all is right, 2 when it is not"),
        Arg::new("print-config")
            .long("print-config")
            .action(ArgAction::SetTrue)
            .conflicts_with("check-config")
            .help(
                "Show the configuration in force and where each value comes from, secrets left out, and exit",
            ),
    ];
    let keys = tier.keys.iter().map(|key| {
        let (table, _) = key.table_and_name();
        let arg = Arg::new(key.path)
            .long(key.flag())
            .value_name(value_name(key))
            .help(help(key))
            .help_heading(format!("Configuration, [{table}]"));
        let arg = match key.short_flag {
            Some(flag) => arg.visible_alias(flag),
            None => arg,
        };
        match key.shape {
            Shape::List { .. } => arg.action(ArgAction::Append),
            _ => arg.action(ArgAction::Set),
        }
    });
    Command::new(tier.program)
        .about(tier.about)
        .version(version)
        .after_help(format!(
            "Each key of the configuration is also a variable, such as {}; options win over variables, variables over \
             the file.",
            tier.keys.first().map_or_else(String::new, |key| tier.variable(key))
        ))
        .args(own)
        .args(keys)
}

const fn value_name(key: &Key) -> &'static str {
    match key.shape {
        Shape::Text | Shape::List { .. } => "TEXT",
        Shape::Path => "PATH",
        Shape::Integer { .. } => "NUMBER",
        Shape::Choice(_) => "WORD",
    }
}

fn help(key: &Key) -> String {
    let doc = key.doc.replace('`', "");
    match (key.shape, key.presence) {
        (Shape::Choice(words), Presence::Default(default)) => {
            format!("{doc} [{}; default: {default}]", words.join(", "))
        }
        (Shape::Choice(words), _) => format!("{doc} [{}]", words.join(", ")),
        (_, Presence::Default("")) => doc,
        (_, Presence::Default(default)) => format!("{doc} [default: {default}]"),
        (_, Presence::Required | Presence::Optional) => doc,
    }
}

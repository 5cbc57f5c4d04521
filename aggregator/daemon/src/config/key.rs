//! What a tier can be told: its keys, each with its shape, its default, and what it means.

use super::value::Value;

/// A name that differs from another in more letters was not meant to be that.
const DISTANCE_MAX: usize = 5;

/// All that one kind of process can be configured with.
#[derive(Debug)]
pub struct Tier {
    /// The program's name; its variables begin with it.
    pub program: &'static str,
    /// One sentence for `--help` and the reference.
    pub about: &'static str,
    /// Its keys, in the order in which the reference shows them, tables together.
    pub keys: &'static [Key],
}

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Table and name: `spool.quota_bytes`.
    pub path: &'static str,
    /// What it means, with its unit; Markdown.
    pub doc: &'static str,
    /// What can be written.
    pub shape: Shape,
    /// What happens where nothing is written.
    pub presence: Presence,
    /// Whether it is never shown.
    pub is_secret: bool,
    /// Whether SIGHUP applies a change to a running process.
    pub is_reloadable: bool,
    /// A shorter option that says the same, without its dashes.
    pub short_flag: Option<&'static str>,
}

/// What can be written for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Any text that is not empty.
    Text,
    /// The path of a file or folder.
    Path,
    /// A whole number of this range.
    Integer {
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Texts, so many.
    List {
        /// The fewest entries.
        entries_min: usize,
        /// The most entries.
        entries_max: usize,
    },
}

/// What happens where nothing is written for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The configuration is refused.
    Required,
    /// There is no value.
    Optional,
    /// This is taken, written as in a variable.
    Default(&'static str),
}

impl Key {
    const fn new(path: &'static str, shape: Shape, doc: &'static str) -> Self {
        Self {
            path,
            doc,
            shape,
            presence: Presence::Required,
            is_secret: false,
            is_reloadable: false,
            short_flag: None,
        }
    }

    /// A text.
    #[must_use]
    pub const fn text(path: &'static str, doc: &'static str) -> Self {
        Self::new(path, Shape::Text, doc)
    }

    /// The path of a file or folder.
    #[must_use]
    pub const fn path(path: &'static str, doc: &'static str) -> Self {
        Self::new(path, Shape::Path, doc)
    }

    /// A text that is never shown.
    #[must_use]
    pub const fn secret(path: &'static str, doc: &'static str) -> Self {
        Self { is_secret: true, presence: Presence::Optional, ..Self::new(path, Shape::Text, doc) }
    }

    /// A whole number between `least` and `most`, both included.
    #[must_use]
    pub const fn integer(path: &'static str, least: u64, most: u64, doc: &'static str) -> Self {
        Self::new(path, Shape::Integer { least, most }, doc)
    }

    /// One of some words.
    #[must_use]
    pub const fn choice(path: &'static str, words: &'static [&'static str], doc: &'static str) -> Self {
        Self::new(path, Shape::Choice(words), doc)
    }

    /// Between `entries_min` and `entries_max` texts.
    #[must_use]
    pub const fn list(path: &'static str, entries_min: usize, entries_max: usize, doc: &'static str) -> Self {
        Self::new(path, Shape::List { entries_min, entries_max }, doc)
    }

    /// What is taken where nothing is written.
    #[must_use]
    pub const fn or(self, default: &'static str) -> Self {
        Self { presence: Presence::Default(default), ..self }
    }

    /// It may be absent.
    #[must_use]
    pub const fn optional(self) -> Self {
        Self { presence: Presence::Optional, ..self }
    }

    /// SIGHUP applies a change.
    #[must_use]
    pub const fn reloadable(self) -> Self {
        Self { is_reloadable: true, ..self }
    }

    /// A shorter option says the same; without its dashes.
    #[must_use]
    pub const fn or_flag(self, flag: &'static str) -> Self {
        Self { short_flag: Some(flag), ..self }
    }

    /// The table and the name in it.
    #[must_use]
    pub fn table_and_name(&self) -> (&'static str, &'static str) {
        self.path.rsplit_once('.').unwrap_or(("", self.path))
    }

    /// The option of the command line, without its dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        self.path.replace(['.', '_'], "-")
    }

    /// What is taken where nothing is written.
    pub(super) fn default_value(&self) -> Option<Value> {
        match self.presence {
            // A default that is no value of its key is found by the test of the keys.
            Presence::Default(text) => Value::from_words(self.shape, text).ok(),
            Presence::Required | Presence::Optional => None,
        }
    }
}

impl Tier {
    /// The key of a path.
    #[must_use]
    pub fn key(&self, path: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.path == path)
    }

    /// What the tier's variables begin with.
    #[must_use]
    pub fn variable_prefix(&self) -> String {
        format!("{}_", self.program.replace('-', "_").to_uppercase())
    }

    /// The environment variable of a key.
    #[must_use]
    pub fn variable(&self, key: &Key) -> String {
        format!("{}{}", self.variable_prefix(), key.path.replace('.', "_").to_uppercase())
    }

    /// Why a variable that begins as the tier's do stands for no key.
    pub(super) fn refusal_of_variable(&self, name: &str) -> Option<String> {
        let prefix = self.variable_prefix();
        name.strip_prefix(&prefix)?;
        // Kubernetes gives these to every container beside a service whose name begins as the program's.
        let is_service_link = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|link| {
            let mut behind = name.match_indices(link).filter_map(|(at, _)| name.get(at + link.len()..));
            behind.any(|more| more.is_empty() || more.starts_with('_'))
        });
        let known = || self.keys.iter().map(|key| self.variable(key)).chain([format!("{prefix}CONFIG")]);
        if is_service_link || known().any(|known| known == name) {
            return None;
        }
        let nearest = known()
            .map(|known| (strsim::osa_distance(&known, name), known))
            .min()
            .filter(|(distance, _)| *distance <= DISTANCE_MAX);
        let instead = match nearest {
            Some((_, known)) => format!("did you mean {known}?"),
            None => format!("{} --help names all", self.program),
        };
        Some(format!("there is no key for it; {instead}"))
    }

    /// What is wrong with the keys themselves: paths, variables or options that stand for two, and defaults that are
    /// no value. For the test of a tier.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (index, key) in self.keys.iter().enumerate() {
            if let Presence::Default(text) = key.presence
                && let Err(reason) = Value::from_words(key.shape, text)
            {
                faults.push(format!("{}: its default {text:?} {reason}", key.path));
            }
            for other in self.keys.iter().skip(index + 1) {
                let flags = |key: &Key| [Some(key.flag()), key.short_flag.map(str::to_owned)];
                let meets =
                    flags(key).iter().flatten().any(|flag| flags(other).contains(&Some(flag.clone())));
                if self.variable(key) == self.variable(other) || meets {
                    faults.push(format!("{} and {} have one variable or option", key.path, other.path));
                }
            }
        }
        faults
    }
}

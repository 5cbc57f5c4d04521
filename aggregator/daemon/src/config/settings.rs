//! What a process was told, from all places: file, environment, command line, in this order, the later wins.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    FILE_BYTES_MAX, file,
    key::{Key, Presence, Tier},
    problems::{Place, Problems},
    value::{Origin, Value},
};

/// Where values come from.
#[derive(Clone, Default)]
pub(super) struct Sources<'a> {
    /// The file's path and text.
    pub(super) file: Option<(&'a Path, &'a str)>,
    /// Names and values of variables.
    pub(super) variables: &'a [(String, String)],
    /// Paths of keys and what options gave them.
    pub(super) flags: &'a [(&'static str, String)],
}

/// What a process was told. Each key is known to be of its shape; what its value means is checked by the tier, which
/// notes what is wrong here as well, so that everything is reported at once.
#[derive(Clone)]
pub struct Settings {
    tier: &'static Tier,
    given: BTreeMap<&'static str, (Value, Origin)>,
    problems: Problems,
    /// Keys that the tier has asked for, of these settings or a clone.
    asked: Arc<Mutex<BTreeSet<&'static str>>>,
}

/// What is in force, without secrets.
impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Settings of {}:\n{}{:?}", self.tier.program, self.to_toml(), self.problems)
    }
}

impl Settings {
    /// Of a file alone.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(tier: &'static Tier, path: &Path) -> Result<Self, super::ConfigError> {
        Ok(Self::parse(tier, path, &read_file(path)?))
    }

    /// Of a file's text alone; `path` is only named in messages.
    #[must_use]
    pub fn parse(tier: &'static Tier, path: &Path, text: &str) -> Self {
        Self::collect(tier, &Sources { file: Some((path, text)), ..Sources::default() })
    }

    pub(super) fn collect(tier: &'static Tier, sources: &Sources<'_>) -> Self {
        let mut problems = match sources.file {
            Some((path, _)) => Problems::of(path.display()),
            None => Problems::of(format_args!("of {}", tier.program)),
        };
        let mut given = BTreeMap::new();
        let in_file = match sources.file {
            Some((_, text)) => file::read(tier, text, &mut problems),
            None => Some(Vec::new()),
        };
        let is_readable = in_file.is_some();
        for (key, value, origin) in in_file.unwrap_or_default() {
            given.insert(key.path, (value, origin));
        }
        let mut outside =
            |key: &'static Key, text: &str, origin: Origin| match Value::from_words(key.shape, text) {
                Ok(value) => drop(given.insert(key.path, (value, origin))),
                Err(reason) => problems.add_at(Place::Outside(origin.to_string()), key.path, reason),
            };
        for key in tier.keys {
            let name = tier.variable(key);
            let set = sources.variables.iter().find(|(other, text)| *other == name && !text.is_empty());
            if let Some((_, text)) = set {
                outside(key, text, Origin::Variable(name));
            }
            let flag = sources.flags.iter().rfind(|(path, _)| *path == key.path);
            if let Some((_, text)) = flag {
                outside(key, text, Origin::Flag(key.flag()));
            }
        }
        for (name, text) in sources.variables {
            if let Some(reason) = tier.refusal_of_variable(name).filter(|_| !text.is_empty()) {
                problems.add_at(Place::Outside(Origin::Variable(name.clone()).to_string()), "", reason);
            }
        }
        let mut settings = Self { tier, given, problems, asked: Arc::default() };
        settings.complete(is_readable);
        settings
    }

    /// Defaults, and what is missing. Of a file that is no TOML nobody knows what is missing.
    fn complete(&mut self, is_readable: bool) {
        let refused: BTreeSet<String> = self.problems.iter().map(|(key, _)| key.to_owned()).collect();
        for key in self.tier.keys {
            if self.given.contains_key(key.path) {
                continue;
            }
            if let Some(value) = key.default_value() {
                self.given.insert(key.path, (value, Origin::Default));
            } else if key.presence == Presence::Required && is_readable && !refused.contains(key.path) {
                let (table, name) = key.table_and_name();
                let reason = format!(
                    "is missing: write {name} = ... under [{table}], set {}, or give --{}",
                    self.tier.variable(key),
                    key.flag()
                );
                self.problems.add(key.path, reason);
            }
        }
    }

    fn value(&self, path: &str) -> Option<&Value> {
        let key = self.tier.key(path);
        debug_assert!(key.is_some(), "{path} is no key of {}", self.tier.program);
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).extend(key.map(|key| key.path));
        self.given.get(path).map(|(value, _)| value)
    }

    /// A text, a word or a path as it was written.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        match self.value(path)? {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(_) | Value::List(_) => None,
        }
    }

    /// A path.
    #[must_use]
    pub fn path(&self, path: &str) -> Option<PathBuf> {
        self.text(path).map(PathBuf::from)
    }

    /// A number; that it fits into `T` is the key's range's to guarantee.
    #[must_use]
    pub fn integer<T: TryFrom<u64>>(&self, path: &str) -> Option<T> {
        match self.value(path)? {
            Value::Integer(number) => T::try_from(*number).ok(),
            Value::Text(_) | Value::List(_) => None,
        }
    }

    /// A text that stands for something; notes why it does not.
    pub fn parse_text<T: FromStr<Err: fmt::Display>>(&mut self, path: &str) -> Option<T> {
        self.read(path, str::parse)
    }

    /// A text of which `read` makes something; notes why it cannot.
    pub fn read<T, E: fmt::Display>(
        &mut self,
        path: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(path)?;
        read(&text).map_err(|error| self.refuse(path, error)).ok()
    }

    /// The entries of a list, each made into something; notes which cannot.
    pub fn read_list<T, E: fmt::Display>(
        &mut self,
        path: &str,
        mut read: impl FnMut(&str) -> Result<T, E>,
    ) -> Vec<T> {
        let entries = match self.value(path) {
            Some(Value::List(entries)) => entries.clone(),
            _ => Vec::new(),
        };
        let mut list = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            match read(entry) {
                Ok(value) => list.push(value),
                Err(error) => {
                    let place = self.place(path);
                    self.problems.add_at(place, format!("{path}[{index}]"), error);
                }
            }
        }
        list
    }

    /// Whether somebody has written a value for the key.
    #[must_use]
    pub fn is_given(&self, path: &str) -> bool {
        self.given.get(path).is_some_and(|(_, origin)| *origin != Origin::Default)
    }

    /// Lets a key have its way over others that it excludes, where those come from a weaker layer (the file, before
    /// variables, before options): they are as if nobody had written them.
    pub fn displace(&mut self, path: &str, others: &[&str]) {
        let Some((_, origin)) = self.given.get(path) else { return };
        let layer = origin.layer();
        self.given.retain(|other, (_, origin)| {
            *other == path || origin.layer() >= layer || !others.contains(other) || *origin == Origin::Default
        });
    }

    /// Notes what is wrong with a key's value.
    pub fn refuse(&mut self, path: &str, reason: impl fmt::Display) {
        let place = self.place(path);
        self.problems.add_at(place, path, reason);
    }

    /// Notes what is wrong with a key's value unless `holds`.
    pub fn require(&mut self, holds: bool, path: &str, reason: impl fmt::Display) {
        if !holds {
            self.refuse(path, reason);
        }
    }

    fn place(&self, path: &str) -> Place {
        match self.given.get(path) {
            Some((_, Origin::Line(line))) => Place::Line(*line),
            Some((_, origin)) => Place::Outside(origin.to_string()),
            None => Place::Nowhere,
        }
    }

    /// What the tier has made of it.
    ///
    /// # Errors
    /// With everything that is wrong. A tier that has nothing without a noted reason has a fault of its own, which is
    /// reported as such.
    pub fn finish<T>(mut self, checked: Option<T>) -> Result<T, Problems> {
        match checked {
            Some(checked) => self.problems.into_result(checked),
            None => {
                if self.problems.is_empty() {
                    let reason = format!("{} did not say what is wrong with it", self.tier.program);
                    self.problems.add("", reason);
                }
                Err(self.problems.in_order())
            }
        }
    }

    /// Keys that no code has asked for, neither of these settings nor of a clone. For the test of a tier.
    #[must_use]
    pub fn unasked(&self) -> Vec<&'static str> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        self.tier.keys.iter().map(|key| key.path).filter(|path| !asked.contains(path)).collect()
    }

    /// Everything in force, as a file that says the same, but for secrets: those are left to be written.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut current = "";
        for key in self.tier.keys {
            let (table, name) = key.table_and_name();
            if table != current {
                let blank = if current.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{blank}[{table}]\n"));
                current = table;
            }
            text.push_str(&match self.given.get(key.path) {
                Some((_, origin)) if key.is_secret => format!("# {name} is set, not shown # {origin}\n"),
                Some((value, origin)) => format!("{name} = {} # {origin}\n", value.to_toml()),
                None => format!("# {name} is not set\n"),
            });
        }
        text
    }

    /// Takes the values of reloadable keys from other settings of the same tier. The others stay as they are, because
    /// they stay in force.
    pub(crate) fn take_reloadable(&mut self, other: &Self) {
        for key in self.tier.keys.iter().filter(|key| key.is_reloadable) {
            match other.given.get(key.path) {
                Some(given) => drop(self.given.insert(key.path, given.clone())),
                None => drop(self.given.remove(key.path)),
            }
        }
    }

    /// Keys whose values differ between these settings and others of the same tier.
    #[must_use]
    pub fn changed(&self, other: &Self) -> Vec<&'static Key> {
        let value = |settings: &Self, key: &Key| settings.given.get(key.path).map(|(value, _)| value.clone());
        self.tier.keys.iter().filter(|key| value(self, key) != value(other, key)).collect()
    }
}

/// The text of a configuration file.
pub(super) fn read_file(path: &Path) -> Result<String, super::ConfigError> {
    let read = |source| super::ConfigError::Read { path: path.to_owned(), source };
    // Looked at before it is opened: a pipe would be waited for, a device would never end.
    if !fs::metadata(path).map_err(read)?.is_file() {
        return Err(super::ConfigError::NoFile { path: path.to_owned() });
    }
    let mut text = String::new();
    let mut file = File::open(path).map_err(read)?.take(FILE_BYTES_MAX + 1);
    file.read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(super::ConfigError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

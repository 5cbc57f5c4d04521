//! `tapio replay`: what an aggregator recorded, told to the same engine again, here, without that aggregator.
//!
//! Reads the files and drives [`tapio_recording::Replay`]; what is decided is decided there. Asks no API.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use tapio_correlation::{RuleSet, RuleSetError};
use tapio_recording::{Comparison, End, Head, ReadError, Reader, Replay, ReplayError, Rules, revision_bytes};
use tapio_schemas::finding::Finding;

use super::{printable, render};

/// What files of recordings end in.
const EXTENSION: &str = "tapio";
/// What is read at a time.
const READ_BYTES: usize = 256 << 10;

/// What to replay.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 replayed, and the same as it was live; 1 it differs, or --compare has nothing to \
    compare; 2 wrong options or rules; 3 the recording cannot be read, or not to its end."
)]
pub(super) struct ReplayArguments {
    /// A file that `tapio-aggregator --record DIR` wrote, or the folder: then every recording in it.
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Use the built-in rules and those of this folder, instead of the recorded ones: what they would have found.
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
    /// Say only whether the replay is the same as it was live, byte for byte; what cannot be compared is a failure.
    #[arg(long, conflicts_with = "rules")]
    compare: bool,
}

/// Why a replay failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayFailure {
    /// The rules are wrong; all faults are listed.
    #[error("rules are wrong:\n{0}")]
    Rules(#[from] tapio_compiler::Faults),
    /// The system refused to open or read.
    #[error("cannot read {}: {source}", path.display())]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder holds no recording.
    #[error("{} holds no recording: tapio-aggregator --record DIR makes them, files that end in .tapio", path.display())]
    Nothing {
        /// The folder.
        path: PathBuf,
    },
    /// A file cannot be read (further).
    #[error("{} {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReadError,
    },
    /// This release cannot replay what was recorded.
    #[error("{}: {source}", path.display())]
    Replay {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReplayError,
    },
    /// The recorded rules are of another release.
    #[error("{}: the recorded rules cannot be used: {source}; replay it with the release of tapio that recorded it, or give rules with --rules DIR", path.display())]
    RecordedRules {
        /// The file.
        path: PathBuf,
        /// Why.
        source: RuleSetError,
    },
    /// A part between others is not there.
    #[error("part {part} is missing in front of {}: put it there, or replay the files one by one", path.display())]
    MissingPart {
        /// The file behind it.
        path: PathBuf,
        /// Its number.
        part: u32,
    },
    /// The replay is not what was live; what differs was shown.
    #[error("the replay differs from what was live")]
    Differs,
    /// There is nothing to compare.
    #[error("nothing can be compared")]
    NotCompared,
    /// The answer cannot be written out.
    #[error("cannot write the answer: {0}")]
    Write(#[from] io::Error),
}

impl ReplayFailure {
    /// The exit status that `--help` documents.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Differs | Self::NotCompared | Self::Write(_) => 1,
            Self::Rules(_) => 2,
            _ => 3,
        }
    }
}

/// Where what goes.
struct Output<'a> {
    json: bool,
    compare: bool,
    out: &'a mut dyn Write,
    /// What is said about the replay: beside the revisions, where those are for programs.
    said: &'a mut dyn Write,
}

/// A file, by its head. It is opened again when it is its turn: a folder may hold many.
struct Part {
    path: PathBuf,
    head: Head,
}

/// Replays.
///
/// # Errors
/// Everything that is wrong with the rules or the recording; and that the replay differs.
pub(super) fn run(arguments: &ReplayArguments, json: bool, out: &mut dyn Write) -> Result<(), ReplayFailure> {
    let own = match &arguments.rules {
        Some(folder) => Some(Arc::new(tapio_compiler::compile_builtin_and_dir(folder)?)),
        None => None,
    };
    let mut errors = io::stderr().lock();
    let recordings = find(&arguments.path)?;
    let mut result = Ok(());
    for parts in recordings {
        let compare = arguments.compare;
        let mut output = Output { json, compare, out: &mut *out, said: &mut errors };
        let replayed = replay(parts, own.as_ref(), &mut output);
        // One that differs must not hide what comes behind it; one that cannot be read ends the command.
        match replayed {
            Err(ReplayFailure::Differs | ReplayFailure::NotCompared) if result.is_ok() => result = replayed,
            Ok(()) | Err(ReplayFailure::Differs | ReplayFailure::NotCompared) => {}
            Err(error) => return Err(error),
        }
    }
    result
}

/// The recordings at a path, each as its parts in order, by when they began.
fn find(path: &Path) -> Result<Vec<Vec<Part>>, ReplayFailure> {
    let failed = |source| ReplayFailure::Open { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![vec![Part { path: path.to_owned(), head: open(path)?.1 }]]);
    }
    let mut recordings: BTreeMap<_, Vec<Part>> = BTreeMap::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            let (_reader, head, _rules) = open(&path)?;
            let whose = (head.began, head.tenant.clone(), head.cluster.clone());
            recordings.entry(whose).or_default().push(Part { path, head });
        }
    }
    if recordings.is_empty() {
        return Err(ReplayFailure::Nothing { path: path.to_owned() });
    }
    for parts in recordings.values_mut() {
        parts.sort_by_key(|part| part.head.part);
        for (before, behind) in parts.iter().zip(parts.iter().skip(1)) {
            if behind.head.part != before.head.part + 1 {
                let (path, part) = (behind.path.clone(), before.head.part + 1);
                return Err(ReplayFailure::MissingPart { path, part });
            }
        }
    }
    Ok(recordings.into_values().collect())
}

type Opened = (Reader<BufReader<File>>, Head, Vec<u8>);

fn open(path: &Path) -> Result<Opened, ReplayFailure> {
    let file = File::open(path).map_err(|source| ReplayFailure::Open { path: path.to_owned(), source })?;
    Reader::open(BufReader::with_capacity(READ_BYTES, file))
        .map_err(|source| ReplayFailure::Read { path: path.to_owned(), source })
}

/// Replays one recording.
fn replay(
    parts: Vec<Part>,
    own: Option<&Arc<RuleSet>>,
    output: &mut Output<'_>,
) -> Result<(), ReplayFailure> {
    let Some(first) = parts.first() else { return Ok(()) };
    let (_reader, head, recorded) = open(&first.path)?;
    let path = first.path.clone();
    let rules = match own {
        Some(own) => Rules::Other(Arc::clone(own)),
        None => match RuleSet::from_bytes(&recorded) {
            Ok(rules) => Rules::Recorded(Arc::new(rules)),
            Err(source) => return Err(ReplayFailure::RecordedRules { path, source }),
        },
    };
    output.say(|out| render::replay::head(&head, out))?;
    let mut replay = Replay::new(&head, rules).map_err(|source| ReplayFailure::Replay { path, source })?;
    let mut stories = BTreeMap::new();
    let mut end = None;
    for part in parts {
        end = play(part, &mut replay, &mut stories, output)?;
    }
    let comparison = replay.comparison();
    if !output.json && !output.compare {
        let last = comparison.span.map(|(_first, last)| last).unwrap_or_default();
        output.print(|out| render::replay::stories(stories.values(), last, out))?;
    }
    let compared = compared(&head, own.is_some(), comparison);
    output.say(|out| {
        render::replay::replayed(comparison, out)?;
        render::replay::ending(end, out)?;
        render::replay::compared(&head, &compared, out)
    })?;
    match compared {
        Compared::Differs(_) => Err(ReplayFailure::Differs),
        Compared::BeginsInTheMiddle | Compared::Nothing if output.compare => Err(ReplayFailure::NotCompared),
        _ => Ok(()),
    }
}

/// Replays one file.
fn play(
    Part { path, .. }: Part,
    replay: &mut Replay,
    stories: &mut BTreeMap<String, Finding>,
    output: &mut Output<'_>,
) -> Result<Option<End>, ReplayFailure> {
    let (mut reader, _head, _rules) = open(&path)?;
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(reader.end()),
            Err(source) => return Err(ReplayFailure::Read { path, source }),
        };
        let findings = match replay.take(entry) {
            Ok(findings) => findings,
            Err(source) => return Err(ReplayFailure::Replay { path, source }),
        };
        if output.compare {
            continue;
        }
        for finding in findings {
            if output.json {
                output.out.write_all(&revision_bytes(&finding))?;
                writeln!(output.out)?;
            } else {
                output.print(|out| render::replay::revision(&finding, out))?;
                stories.insert(finding.id.clone(), finding);
            }
        }
    }
}

impl Output<'_> {
    fn print(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut text = Vec::new();
        write(&mut text)?;
        self.out.write_all(printable(&text).as_bytes())
    }

    fn say(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut text = Vec::new();
        write(&mut text)?;
        let to = if self.json { &mut *self.said } else { &mut *self.out };
        to.write_all(printable(&text).as_bytes())
    }
}

/// How a replay compares with what was live.
pub(crate) enum Compared<'a> {
    Equal(u64),
    Differs(&'a tapio_recording::Difference),
    /// With rules of the user's.
    OtherRules,
    /// Of a recording whose first part is not there.
    BeginsInTheMiddle,
    /// It ends before the engine was told the time.
    Nothing,
}

fn compared<'a>(head: &Head, has_other_rules: bool, comparison: &'a Comparison) -> Compared<'a> {
    match &comparison.difference {
        _ if has_other_rules => Compared::OtherRules,
        _ if head.part > 1 => Compared::BeginsInTheMiddle,
        Some(difference) => Compared::Differs(difference),
        None if comparison.ticks == 0 => Compared::Nothing,
        None => Compared::Equal(comparison.live),
    }
}

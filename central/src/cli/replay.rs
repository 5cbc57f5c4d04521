//! `tapio replay`: what an aggregator recorded, told to the same engine again, here, without that aggregator.
//!
//! Reads the files and drives [`tapio_recording::Replay`]; what is decided is decided there. Asks no API.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use tapio_correlation::{RuleSet, RuleSetError};
use tapio_recording::{
    Comparison, End, Ending, Entry, Head, ReadError, Reader, Replay, ReplayError, Rules, revision_bytes,
};
use tapio_schemas::{
    entity::EntityKey,
    finding::Finding,
    units::UnixMicros,
    verdict::{Role, Verdict},
};

use super::{
    render,
    terminal::{plain, printable},
};

/// What files of recordings end in.
const EXTENSION: &str = "tapio";
/// What is read at a time.
const READ_BYTES: usize = 256 << 10;

/// Hypotheses that are kept to be told.
const HYPOTHESES_MAX: usize = 1_000;
/// Findings that are kept to be told as stories.
const STORIES_MAX: usize = 10_000;
/// Announced faults that are remembered: beyond, what was weighed of a fault may be told although it was announced.
const ANNOUNCED_MAX: usize = 100_000;

/// What to replay.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 replayed, and nothing differs from what was live; 1 it differs, or --compare cannot compare \
    all of it; 2 wrong options or rules; 3 the recording cannot be read. One that is cut, because its aggregator was killed or still \
    records, is replayed as far as it goes."
)]
pub(super) struct ReplayArguments {
    /// A file that `tapio-aggregator --record DIR` wrote, or the folder: then every recording in it.
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Use the built-in rules and those of this folder, instead of the recorded ones: what they would have found.
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
    /// Say only whether the replay is the same as it was live, byte for byte; a recording that cannot be compared, or
    /// that did not end in order, is a failure. With --json the revisions are given too.
    #[arg(long, conflicts_with = "rules")]
    compare: bool,
    /// Say also what was weighed and not announced, and why not: of each rule and cause what came closest.
    #[arg(long, conflicts_with = "compare")]
    hypotheses: bool,
}

/// Why a replay failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayFailure {
    /// The rules are wrong; all faults are listed.
    #[error("rules are wrong:\n{0}")]
    Rules(#[from] tapio_compiler::Faults),
    /// There are no rules in the folder.
    #[error("{} holds no rules: name the folder in which your rule files are, which end in .yaml (--rules)", path.display())]
    NoRules {
        /// The folder.
        path: PathBuf,
    },
    /// It is a pipe or a device.
    #[error("{} is no regular file: write the recording to a file first, it is read more than once", path.display())]
    NoFile {
        /// What was named.
        path: PathBuf,
    },
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
    /// Two files are the same part.
    #[error("{} and {} are both part {part} of one recording: leave one of them out", path.display(), other.display())]
    SamePart {
        /// One of them.
        path: PathBuf,
        /// The other.
        other: PathBuf,
        /// Their number.
        part: u32,
    },
    /// A part in front of another was cut.
    #[error("{} was cut, and the recording goes on in another file: what is behind the cut cannot be compared; replay the files one by one", path.display())]
    CutPart {
        /// The file.
        path: PathBuf,
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
    #[error(
        "that is not all of it: the recording did not end in order, or cannot be compared, as said above"
    )]
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
            Self::Rules(_) | Self::NoRules { .. } => 2,
            _ => 3,
        }
    }
}

/// Where what goes.
struct Output<'a> {
    json: bool,
    compare: bool,
    hypotheses: bool,
    out: &'a mut dyn Write,
    /// What is said about the replay: beside the revisions, where those are for programs.
    said: &'a mut dyn Write,
}

/// What a replay said, by what it is about.
#[derive(Default)]
struct Replayed {
    /// The last revision of each finding.
    stories: BTreeMap<String, Finding>,
    /// Of each fault the hypothesis that came closest, and of these the last.
    hypotheses: BTreeMap<Fault, Verdict>,
    /// Faults that were announced: what was weighed of them before is no news.
    announced: BTreeSet<Fault>,
    /// Whether there were hypotheses that there was no room for.
    lacks_hypotheses: bool,
    /// Whether there were findings that there was no room for.
    lacks_stories: bool,
}

/// A rule, a cause, and when the fault began.
type Fault = (String, EntityKey, UnixMicros);

fn fault_of(verdict: &Verdict) -> Fault {
    let began = verdict.first(Role::Fault).map(|line| line.first.earliest).unwrap_or_default();
    (verdict.rule.clone(), verdict.cause.clone(), began)
}

impl Replayed {
    fn announce(&mut self, finding: &Finding) {
        let fault = fault_of(&finding.verdict);
        self.hypotheses.remove(&fault);
        if self.announced.len() < ANNOUNCED_MAX {
            self.announced.insert(fault);
        }
    }

    fn weigh(&mut self, hypotheses: Vec<Verdict>) {
        for verdict in hypotheses {
            let of = fault_of(&verdict);
            if self.announced.contains(&of) {
                continue;
            }
            let worth = |verdict: &Verdict| (verdict.outcome, verdict.evidence_present);
            match self.hypotheses.get(&of) {
                Some(known) if worth(known) > worth(&verdict) => {}
                None if self.hypotheses.len() >= HYPOTHESES_MAX => self.lacks_hypotheses = true,
                _ => drop(self.hypotheses.insert(of, verdict)),
            }
        }
    }
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
        Some(folder) if tapio_compiler::compile_dir(folder)?.rules().is_empty() => {
            return Err(ReplayFailure::NoRules { path: folder.clone() });
        }
        Some(folder) => Some(Arc::new(tapio_compiler::compile_builtin_and_dir(folder)?)),
        None => None,
    };
    let mut errors = io::stderr().lock();
    let mut result = Ok(());
    for found in find(&arguments.path, &mut errors)? {
        let ReplayArguments { compare, hypotheses, .. } = *arguments;
        let mut output = Output { json, compare, hypotheses, out: &mut *out, said: &mut errors };
        // One that differs, or cannot be read, must not hide what comes behind it.
        match found.and_then(|parts| replay(parts, own.as_ref(), &mut output)) {
            Ok(()) => {}
            Err(failure @ ReplayFailure::Write(_)) => return Err(failure),
            Err(failure) => result = Err(worse(result, failure, &mut errors)?),
        }
    }
    result
}

/// The worse of two failures. The other is said here, unless its recording has said all of it.
fn worse(
    known: Result<(), ReplayFailure>,
    failure: ReplayFailure,
    said: &mut dyn Write,
) -> Result<ReplayFailure, ReplayFailure> {
    let Err(known) = known else { return Ok(failure) };
    let is_worse = failure.exit_status() > known.exit_status();
    let (worse, other) = if is_worse { (failure, known) } else { (known, failure) };
    if !matches!(other, ReplayFailure::Differs | ReplayFailure::NotCompared) {
        writeln!(said, "tapio: {}", printable(&other.to_string()))?;
    }
    Ok(worse)
}

type Found = Vec<Result<Vec<Part>, ReplayFailure>>;

/// The recordings at a path, each as its parts in order, by when they began; behind files that cannot be read.
fn find(path: &Path, said: &mut dyn Write) -> Result<Found, ReplayFailure> {
    let failed = |source| ReplayFailure::Open { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![Ok(vec![Part { path: path.to_owned(), head: open(path)?.1 }])]);
    }
    let mut found: Found = Vec::new();
    let mut recordings: BTreeMap<_, Vec<Part>> = BTreeMap::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            let head = match open(&path) {
                Ok((_reader, head, _rules)) => head,
                // Its aggregator was killed as it began it, or has just removed it to make room.
                Err(error) if is_nothing(&error) => {
                    writeln!(said, "left out: {}", printable(&error.to_string()))?;
                    continue;
                }
                Err(error) => {
                    found.push(Err(error));
                    continue;
                }
            };
            let whose = (head.began, head.tenant.clone(), head.cluster.clone());
            recordings.entry(whose).or_default().push(Part { path, head });
        }
    }
    if recordings.is_empty() && found.is_empty() {
        return Err(ReplayFailure::Nothing { path: path.to_owned() });
    }
    found.extend(recordings.into_values().map(in_order));
    Ok(found)
}

/// Whether there is nothing in a file, or no file any more.
fn is_nothing(error: &ReplayFailure) -> bool {
    match error {
        ReplayFailure::Read { source, .. } => matches!(source, ReadError::Empty | ReadError::NoHead { .. }),
        ReplayFailure::Open { source, .. } => source.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The parts of one recording, in order and without a gap.
fn in_order(mut parts: Vec<Part>) -> Result<Vec<Part>, ReplayFailure> {
    parts.sort_by_key(|part| part.head.part);
    for (before, behind) in parts.iter().zip(parts.iter().skip(1)) {
        if behind.head.part == before.head.part {
            let (path, other) = (before.path.clone(), behind.path.clone());
            return Err(ReplayFailure::SamePart { path, other, part: before.head.part });
        }
        if behind.head.part != before.head.part + 1 {
            let (path, part) = (behind.path.clone(), before.head.part + 1);
            return Err(ReplayFailure::MissingPart { path, part });
        }
    }
    Ok(parts)
}

type Opened = (Reader<BufReader<File>>, Head, Vec<u8>);

fn open(path: &Path) -> Result<Opened, ReplayFailure> {
    let failed = |source| ReplayFailure::Open { path: path.to_owned(), source };
    // Looked at before it is opened: a pipe would be waited for.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(ReplayFailure::NoFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(failed)?;
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
    let mut told = Replayed::default();
    let mut end = None;
    let mut parts = parts.into_iter().peekable();
    while let Some(part) = parts.next() {
        let path = part.path.clone();
        end = play(part, &mut replay, &mut told, output)?;
        if parts.peek().is_some() && end != Some(End::Closed(Ending::Continues)) {
            return Err(ReplayFailure::CutPart { path });
        }
    }
    let comparison = replay.comparison();
    if !output.json && !output.compare {
        output.print(|out| render::replay::stories(told.stories.values(), told.lacks_stories, out))?;
    }
    if output.hypotheses {
        output.say(|out| {
            render::replay::hypotheses(told.hypotheses.values().map(plain), told.lacks_hypotheses, out)
        })?;
    }
    let compared = compared(&head, own.is_some(), comparison);
    output.say(|out| {
        render::replay::replayed(comparison, out)?;
        render::replay::ending(end, out)?;
        render::replay::compared(&head, &compared, out)
    })?;
    match compared {
        Compared::Differs(_) => Err(ReplayFailure::Differs),
        _ if !output.compare => Ok(()),
        Compared::Equal(_) if end == Some(End::Closed(Ending::Drained)) => Ok(()),
        _ => Err(ReplayFailure::NotCompared),
    }
}

/// Replays one file.
fn play(
    Part { path, .. }: Part,
    replay: &mut Replay,
    told: &mut Replayed,
    output: &mut Output<'_>,
) -> Result<Option<End>, ReplayFailure> {
    let (mut reader, _head, _rules) = open(&path)?;
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(reader.end()),
            Err(source) => return Err(ReplayFailure::Read { path, source }),
        };
        let is_tick = matches!(entry, Entry::Tick { .. });
        let findings = match replay.take(entry) {
            Ok(findings) => findings,
            Err(source) => return Err(ReplayFailure::Replay { path, source }),
        };
        if output.hypotheses {
            findings.iter().for_each(|finding| told.announce(finding));
            if is_tick {
                told.weigh(replay.hypotheses());
            }
        }
        if output.compare && !output.json {
            continue;
        }
        for finding in findings {
            if output.json {
                output.out.write_all(&revision_bytes(&finding))?;
                writeln!(output.out)?;
            } else {
                let finding = plain(&finding);
                let before = told.stories.get(&finding.id);
                if before.is_none_or(|before| !render::replay::is_same_line(before, &finding)) {
                    output.print(|out| render::replay::revision(&finding, out))?;
                }
                if before.is_some() || told.stories.len() < STORIES_MAX {
                    told.stories.insert(finding.id.clone(), finding);
                } else {
                    told.lacks_stories = true;
                }
            }
        }
    }
}

impl Output<'_> {
    fn print(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut text = Vec::new();
        write(&mut text)?;
        self.out.write_all(printable(&String::from_utf8_lossy(&text)).as_bytes())
    }

    fn say(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut text = Vec::new();
        write(&mut text)?;
        let to = if self.json { &mut *self.said } else { &mut *self.out };
        to.write_all(printable(&String::from_utf8_lossy(&text)).as_bytes())
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
    /// It holds no frame and no revision, or ends before the engine was told the time.
    Nothing,
}

fn compared<'a>(head: &Head, has_other_rules: bool, comparison: &'a Comparison) -> Compared<'a> {
    match &comparison.difference {
        _ if has_other_rules => Compared::OtherRules,
        _ if head.part > 1 => Compared::BeginsInTheMiddle,
        Some(difference) => Compared::Differs(difference),
        None if comparison.ticks == 0 || comparison.frames == 0 && comparison.live == 0 => Compared::Nothing,
        None => Compared::Equal(comparison.live),
    }
}

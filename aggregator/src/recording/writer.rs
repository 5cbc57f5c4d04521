//! The thread that writes a recording, part by part, and ends it where it cannot.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, mpsc::RecvTimeoutError},
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tapio_correlation::{AnalysisLimits, Pods, RuleSet};
use tapio_daemon::Progress;
use tapio_recording::{Encoder, Ending, Entry, Head, NameChange, SourceFact, TooLarge};
use tapio_schemas::{
    ids::{ClusterId, TenantId},
    units::UnixMicros,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    Kept, Message, Source,
    files::{Files, FilesError},
};
use crate::{config::RecordConfig, metrics::RecordingMetrics};

/// What is encoded and not handed to the system yet.
const BUFFER_BYTES: usize = 256 << 10;
/// It is handed over at least this often: so much a killed process loses.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// The quota holds what every file begins with at least so often.
const PREAMBLES_PER_QUOTA_MIN: u64 = 8;
/// Names in one record.
const NAMES_MAX: usize = 1_000;

/// What a recording is made of.
pub(crate) struct Parts {
    pub(crate) rules: Arc<RuleSet>,
    pub(crate) tenant: TenantId,
    pub(crate) cluster: ClusterId,
    pub(crate) limits: AnalysisLimits,
    /// Bytes that stay free on the file system: recording is the least of what needs it.
    pub(crate) reserve_bytes: u64,
    pub(crate) began: UnixMicros,
    pub(crate) source: Source,
    pub(crate) runtime: Handle,
    pub(crate) metrics: RecordingMetrics,
    pub(crate) progress: Progress,
    /// Cancelled when the tier has ended: until then a recording that ended before shows why.
    pub(crate) stop: CancellationToken,
}

/// The writer; [`Writer::run`] is its thread.
pub(crate) struct Writer {
    source: Source,
    files: Files,
    part: Part,
    head: Head,
    rules: Arc<RuleSet>,
    /// What each node cannot see, as it was recorded last.
    sources: HashMap<String, Arc<[String]>>,
    pods: Arc<Pods>,
    runtime: Handle,
    metrics: RecordingMetrics,
    progress: Progress,
    stop: CancellationToken,
}

/// The file that is being written.
struct Part {
    file: File,
    path: PathBuf,
    encoder: Encoder,
    buffer: Vec<u8>,
    /// Bytes of the file that count, and the encoder as it was behind them.
    written: u64,
    /// What the file began with, so that it can be replayed by itself.
    preamble_bytes: u64,
    encoder_at_written: Encoder,
    reserve_bytes: u64,
    flushed_at: Instant,
    /// Counts bytes in files.
    counter: Counter,
}

/// Why the recording cannot go on.
enum Stopped {
    Ended(Ending),
    Failed(Ending, String),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Failed(ending_of(error.kind()), error.to_string())
    }
}

impl From<FilesError> for Stopped {
    fn from(error: FilesError) -> Self {
        Self::Failed(ending_of(error.kind()), error.to_string())
    }
}

impl From<TooLarge> for Stopped {
    fn from(error: TooLarge) -> Self {
        Self::Failed(Ending::TooLarge, error.to_string())
    }
}

fn ending_of(kind: io::ErrorKind) -> Ending {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Ending::DiskFull,
        _ => Ending::DiskFailed,
    }
}

impl Writer {
    /// Opens the folder and begins the first part, so that whoever cannot record knows it at the start.
    pub(crate) fn open(config: &RecordConfig, parts: Parts) -> Result<Self, FilesError> {
        let Parts {
            rules,
            tenant,
            cluster,
            limits,
            reserve_bytes,
            began,
            source,
            runtime,
            metrics,
            progress,
            stop,
        } = parts;
        let mut files = Files::open(&config.directory, config.bytes_max)?;
        let head = Head {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            tenant,
            cluster,
            began,
            part: 1,
            rule_set: rules.version(),
            limits,
        };
        let room = files.part_bytes();
        let (file, path, removed) = files.create(began, head.part, room)?;
        metrics.removed.inc_by(removed);
        let part = Part::begin(file, &path, &head, &rules, reserve_bytes, metrics.bytes.clone())
            .map_err(|error| FilesError::new("write to", &path, error))?;
        let (sources, pods) = (HashMap::new(), Arc::default());
        progress.idle();
        Ok(Self { source, files, part, head, rules, sources, pods, runtime, metrics, progress, stop })
    }

    /// Works until the engine ends, or until the recording cannot go on.
    pub(crate) fn run(mut self) {
        tracing::info!(path = %self.part.path.display(), "what the engine takes is recorded");
        let stopped = loop {
            if let Err(stopped) = self.turn() {
                break stopped;
            }
        };
        let (why, error) = match stopped {
            Stopped::Ended(why) => (why, String::new()),
            Stopped::Failed(why, error) => (why, error),
        };
        // Nobody may wait for room that what is queued holds.
        let Source { messages, shared } = self.source;
        shared.end(why);
        drop(messages);
        let closed = self.part.close(why);
        // As the file says it.
        let why = closed.as_ref().err().map_or(why, |error| ending_of(error.kind()));
        if why == Ending::Drained && closed.is_ok() {
            return self.progress.finish();
        }
        let error = closed.err().map(|error| error.to_string()).filter(|_| error.is_empty()).unwrap_or(error);
        self.metrics.ended.add(why.name(), 1);
        tracing::error!(
            path = %self.part.path.display(),
            reason = why.name(),
            error,
            "the recording has ended: restart the aggregator to begin another"
        );
        let (folder, because) = (self.files.folder().display(), why.because());
        self.progress
            .fault(format!("the recording in {folder} has ended: {because}; restart to begin another"));
        self.progress.idle();
        self.runtime.block_on(self.stop.cancelled());
        self.progress.finish();
    }

    /// Takes one message, or nothing for a while.
    fn turn(&mut self) -> Result<(), Stopped> {
        self.progress.idle();
        match self.source.messages.recv_timeout(FLUSH_INTERVAL) {
            Ok(message) => {
                self.progress.busy();
                self.write(message)?;
                self.progress.tick();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                let why = self.source.shared.ending.get().copied().unwrap_or(Ending::Failed);
                return Err(Stopped::Ended(why));
            }
        }
        if self.part.buffer.len() >= BUFFER_BYTES || self.part.flushed_at.elapsed() >= FLUSH_INTERVAL {
            self.part.flush()?;
            let used = self.files.used_bytes() + self.part.written;
            self.metrics.used_bytes.set(i64::try_from(used).unwrap_or(i64::MAX));
        }
        Ok(())
    }

    fn write(&mut self, message: Message) -> Result<(), Stopped> {
        if self.part.bytes() >= self.part_bytes_max() {
            self.next_part()?;
        }
        match message {
            Message::Earlier { revision, _room } => self.part.put(&Entry::Earlier(&revision))?,
            Message::Frame(Kept { node, missing_probes, arrival, bytes, _room }) => {
                if self.sources.get(&node).is_none_or(|known| *known != missing_probes) {
                    self.part.put(&Entry::Source(fact(&node, &missing_probes)))?;
                    self.sources.insert(node.clone(), missing_probes);
                }
                self.part.put(&Entry::Frame { arrival, node: &node, bytes: &bytes })?;
            }
            Message::Names { pods, _room } => {
                self.part.rename(&self.pods, &pods)?;
                self.pods = pods;
            }
            Message::CatchUp(now) => self.part.put(&Entry::CatchUp(now))?,
            Message::Tick { now, revisions, _room } => {
                let count = u32::try_from(revisions.len()).unwrap_or(u32::MAX);
                self.part.put(&Entry::Tick { now, revisions: count })?;
                for revision in &revisions {
                    self.part.put(&Entry::Revision(revision))?;
                }
            }
        }
        self.metrics.entries.inc();
        Ok(())
    }

    /// How large a part grows: at least half of it is more than what every part begins with.
    fn part_bytes_max(&self) -> u64 {
        self.files.part_bytes().max(2 * self.part.preamble_bytes)
    }

    /// Ends the part and begins another, with everything in force that replays need to know.
    fn next_part(&mut self) -> Result<(), Stopped> {
        let room = self.part_bytes_max();
        // On the disk before there is a next one: a power cut must not take what stands in the middle.
        self.part.close(Ending::Continues)?;
        self.files.finish(self.part.path.clone(), self.part.file.metadata()?.len());
        self.head.part += 1;
        let (file, path, removed) = self.files.create(self.head.began, self.head.part, room)?;
        self.metrics.removed.inc_by(removed);
        let (reserve_bytes, counter) = (self.part.reserve_bytes, self.metrics.bytes.clone());
        self.part = Part::begin(file, &path, &self.head, &self.rules, reserve_bytes, counter)?;
        for (node, missing_probes) in &self.sources {
            self.part.put(&Entry::Source(fact(node, missing_probes)))?;
        }
        self.part.rename(&Pods::default(), &self.pods)?;
        self.part.preamble_bytes = self.part.bytes();
        let (preamble, quota) = (self.part.preamble_bytes, self.files.bytes_max());
        if preamble.saturating_mul(PREAMBLES_PER_QUOTA_MIN) > quota {
            let said = format!(
                "the names in force, with which every file begins, are {preamble} bytes, and record.bytes_max is {quota}: \
                 raise it to {} or more",
                preamble * PREAMBLES_PER_QUOTA_MIN
            );
            return Err(Stopped::Failed(Ending::TooLarge, said));
        }
        Ok(())
    }
}

fn fact(node: &str, missing_probes: &[String]) -> SourceFact {
    SourceFact { node: node.to_owned(), missing_probes: missing_probes.to_vec() }
}

impl Part {
    /// Begins a file. Its head is in the file when this returns, so that one that is found is never without.
    fn begin(
        file: File,
        path: &Path,
        head: &Head,
        rules: &RuleSet,
        reserve_bytes: u64,
        counter: Counter,
    ) -> io::Result<Self> {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let encoder = Encoder::begin(head, rules, &mut buffer);
        let (path, encoder_at_written, flushed_at) = (path.to_owned(), encoder, Instant::now());
        let mut part = Self {
            file,
            path,
            encoder,
            buffer,
            written: 0,
            preamble_bytes: 0,
            encoder_at_written,
            reserve_bytes,
            flushed_at,
            counter,
        };
        part.flush()?;
        Ok(part)
    }

    fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn put(&mut self, entry: &Entry<'_>) -> Result<(), Stopped> {
        self.encoder.put(entry, &mut self.buffer)?;
        // Also within a message that makes many records.
        if self.buffer.len() >= 2 * BUFFER_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what changed from one set of names to another.
    fn rename(&mut self, from: &Pods, to: &Pods) -> Result<(), Stopped> {
        let named: Vec<_> = to.iter().filter(|pod| from.get(&pod.pod_uid) != Some(pod)).cloned().collect();
        let gone: Vec<_> = from.iter().filter(|pod| to.get(&pod.pod_uid).is_none()).collect();
        for named in named.chunks(NAMES_MAX) {
            self.put(&Entry::Names(NameChange { named: named.to_vec(), gone: Vec::new() }))?;
        }
        for gone in gone.chunks(NAMES_MAX) {
            let gone = gone.iter().map(|pod| pod.pod_uid.clone()).collect();
            self.put(&Entry::Names(NameChange { named: Vec::new(), gone }))?;
        }
        Ok(())
    }

    /// Hands what is encoded to the system. Where that fails, what was written before counts, and nothing else.
    fn flush(&mut self) -> io::Result<()> {
        self.flushed_at = Instant::now();
        let bytes = self.buffer.len() as u64;
        self.check_reserve(bytes)?;
        self.file.write_all_at(&self.buffer, self.written)?;
        self.counter.inc_by(bytes);
        self.written += bytes;
        self.buffer.clear();
        self.encoder_at_written = self.encoder;
        Ok(())
    }

    fn check_reserve(&self, bytes: u64) -> io::Result<()> {
        match tapio_spool::free_bytes(&self.path) {
            Some(free) if free < self.reserve_bytes.saturating_add(bytes) => {
                let kept = self.reserve_bytes;
                let said =
                    format!("{free} bytes are free, of which {kept} are kept for the aggregator's spools");
                Err(io::Error::new(io::ErrorKind::StorageFull, said))
            }
            _ => Ok(()),
        }
    }

    /// Says why the file ends, and puts it on the disk; said again, the later word counts. What the disk refuses is left
    /// out: what was written before is whole, and the end, which then is the disk's fault, is said behind it.
    fn close(&mut self, why: Ending) -> io::Result<()> {
        let flushed = self.flush();
        let why = flushed.as_ref().err().map_or(why, |error| ending_of(error.kind()));
        if flushed.is_err() {
            self.buffer.clear();
            self.encoder = self.encoder_at_written;
        }
        let mut end = Vec::new();
        // A copy: what comes behind counts from where the file ended before this word.
        let mut encoder = self.encoder_at_written;
        encoder.put(&Entry::End(why), &mut end).map_err(io::Error::other)?;
        self.file.set_len(self.written)?;
        self.file.write_all_at(&end, self.written)?;
        self.file.sync_all()?;
        flushed
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tapio_recording::{End, Reader};

    use super::*;

    fn part(path: &Path) -> Part {
        let file = File::options().write(true).create_new(true).open(path).unwrap();
        let rules = RuleSet::new(Vec::new()).unwrap();
        let head = Head {
            release: "0".to_owned(),
            tenant: "default".parse().unwrap(),
            cluster: "demo".parse().unwrap(),
            began: UnixMicros(7),
            part: 1,
            rule_set: rules.version(),
            limits: AnalysisLimits::default(),
        };
        Part::begin(file, path, &head, &rules, 0, Counter::default()).unwrap()
    }

    /// The times in a file, and how it ends.
    fn read(path: &Path) -> (Vec<u64>, Option<End>) {
        let (mut reader, _head, _rules) = Reader::open(File::open(path).unwrap()).unwrap();
        let mut times = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            if let Entry::CatchUp(now) = entry {
                times.push(now.0);
            }
        }
        (times, reader.end())
    }

    fn put(part: &mut Part, time: u64) {
        assert!(part.put(&Entry::CatchUp(UnixMicros(time))).is_ok());
    }

    /// Scenario: the file system has only its reserve left, and a write that it refused left a piece behind.
    /// Guarantees: what was written before is whole, nothing else is in the file, and it says why it ends.
    #[test]
    fn a_full_disk_leaves_whole_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let mut part = part(&path);
        put(&mut part, 1);
        part.flush().unwrap();
        put(&mut part, 2);
        part.file.write_all_at(b"a piece of what did not fit", part.written).unwrap();
        part.reserve_bytes = u64::MAX;
        assert_eq!(part.flush().unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(part.close(Ending::DiskFull).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&path), (vec![1], Some(End::Closed(Ending::DiskFull))));
    }

    /// Scenario: the aggregator ends in order, and the file system has no room for the last of it.
    /// Guarantees: the file does not say that it ended in order: what is missing at its end would pass for all there was.
    #[test]
    fn an_orderly_end_that_is_not_written_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let mut part = part(&path);
        put(&mut part, 1);
        part.flush().unwrap();
        put(&mut part, 2);
        part.reserve_bytes = u64::MAX;
        assert_eq!(part.close(Ending::Drained).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&path), (vec![1], Some(End::Closed(Ending::DiskFull))));
    }

    /// Scenario: a part was to go on in the next, which cannot be made.
    /// Guarantees: the file ends once, with the later word.
    #[test]
    fn the_later_word_about_the_end_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let mut part = part(&path);
        assert!(fs::metadata(&path).unwrap().len() > 0, "a file is never without its head");
        put(&mut part, 1);
        part.close(Ending::Continues).unwrap();
        assert_eq!(read(&path), (vec![1], Some(End::Closed(Ending::Continues))));
        part.close(Ending::DiskFailed).unwrap();
        assert_eq!(read(&path), (vec![1], Some(End::Closed(Ending::DiskFailed))));
    }
}

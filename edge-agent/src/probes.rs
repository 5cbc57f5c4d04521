//! The agent's eyes in the kernel: loads the eBPF programs one by one and hands out what they see.
//!
//! Owns the embedded object, the attachments, the maps and the counters. With a folder in bpffs ([`Pins`]) they outlive the
//! agent: the next one takes them over where they fit, and replaces them where they are of another object. Without, they
//! end when [`Probes`] is dropped. Must never let one refused hook disturb another, never change what it observes, and
//! never know containers, pods or folding beyond the kernel's own maps: that is the business of those who read the
//! records. This module is the only user of aya. The agent's start calls [`Probes::load`], its reader thread owns the
//! [`RingReader`], its spool's thread the [`Progress`], its sampler calls [`Probes::stats`] and [`Probes::drain_folded`].

mod attach;
mod btf;
mod capability;
mod config;
mod counters;
mod folds;
mod layout;
mod pins;
mod progress;
mod ring;
mod syscalls;
mod takeover;

use std::os::fd::OwnedFd;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
};
use tapio_kernel_abi::{
    AGENT_SOCK_KEY_MASK, AGENT_START, AGENT_TGID, FoldKey, FoldValue, ProbeId, ProbeStats, SyscallRule,
    TCP_STATE_AGAIN, TCP_STATE_AGAIN_SLOT,
};
use tapio_wire::Position;

use self::{attach::Attachment, folds::Folds, layout::Layout, pins::Version};
pub use self::{
    btf::BtfError,
    capability::{Capability, CapabilityState},
    config::ProbesConfig,
    counters::{KernelRun, ProbeCounters},
    folds::DrainedFolds,
    layout::LayoutError,
    pins::{Pins, PinsError, Removed, remove_all},
    progress::{KernelLine, KernelTold, Mark, Progress, Reached, Resume},
    ring::{BadCounts, RingError, RingPlace, RingReader},
    takeover::{Earlier, Found, Left},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/prebuilt/tapio.bpf.o");
/// Names the object by its hash, which a test holds it to.
const MANIFEST: &str = include_str!("../../ebpf/prebuilt/manifest.json");
/// What is pinned can be read by an agent that has the same number here: it rises when a record, the counters or the
/// progress change their layout.
const PINNED_LAYOUT: u32 = 1;
/// The programs' maps; the compiler's own are not among them.
const MAPS: [&str; 13] = [
    "AGENT",
    "FILES",
    "FOLDS_ACTIVE",
    "FOLDS_EVEN",
    "FOLDS_ODD",
    "FOLD_SCRATCH",
    "OWNERS",
    "PAYLOAD_SCRATCH",
    "POD_FILES",
    "RECORDS",
    "STATS",
    "SYSCALLS",
    "TAKEN",
];

/// What can go wrong with the probes as a whole. A single probe's trouble is in its [`Capability`].
#[derive(Debug, thiserror::Error)]
pub enum ProbesError {
    /// The probes were never loaded; the capabilities say why.
    #[error("the probes are not loaded")]
    NotLoaded,
    /// The kernel refused access to one of the maps.
    #[error("map {map} cannot be used")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: MapError,
    },
    /// A probe does not come off.
    #[error("probe {probe} cannot be detached")]
    Detach {
        /// Name of the probe.
        probe: &'static str,
        /// Why.
        #[source]
        source: PinsError,
    },
    /// The kernel does not measure.
    #[error("the kernel does not measure the time that programs take")]
    Measure(#[source] aya::sys::SyscallError),
    /// Waiting until no program runs failed.
    #[error("the kernel cannot tell when all running programs have ended")]
    GracePeriod(#[source] std::io::Error),
}

/// The programs in the kernel. Dropping it detaches all of them that are not pinned.
pub struct Probes {
    loaded: Option<Loaded>,
    ring: Option<RingReader>,
    progress: Option<Progress>,
    found: Option<Box<Found>>,
}

struct Loaded {
    /// The probes' programs, in the order in which they were attached.
    attachments: Vec<Attachment>,
    stats: PerCpuArray<MapData, ProbeStats>,
    folds: Folds,
    version: Option<Version>,
}

impl Probes {
    /// Loads and attaches every probe that is not disabled, each by itself, and says which of them work. Where not
    /// even the maps can be made (no privilege, no BPF, no BTF) every probe has failed, with that as its reason.
    #[must_use]
    pub fn load(config: &ProbesConfig) -> (Self, Vec<Capability>) {
        Self::load_in(config, None, None)
    }

    /// As [`Probes::load`], in a folder of bpffs: takes over what fits there, replaces what does not, and leaves all of it
    /// there when the agent ends. `newest` is the newest frame in the spool.
    #[must_use]
    pub fn load_pinned(
        config: &ProbesConfig,
        pins: &Pins,
        newest: Option<Position>,
    ) -> (Self, Vec<Capability>) {
        Self::load_in(config, Some(pins), newest)
    }

    fn load_in(
        config: &ProbesConfig,
        pins: Option<&Pins>,
        newest: Option<Position>,
    ) -> (Self, Vec<Capability>) {
        Self::load_object(config, pins, newest).unwrap_or_else(|reason| {
            let capabilities = ProbeId::ALL
                .into_iter()
                .map(|probe| {
                    if config.disabled.contains(&probe) {
                        Capability::disabled(probe)
                    } else {
                        Capability::failed(probe, reason.clone())
                    }
                })
                .collect();
            (Self { loaded: None, ring: None, progress: None, found: None }, capabilities)
        })
    }

    fn load_object(
        config: &ProbesConfig,
        pins: Option<&Pins>,
        newest: Option<Position>,
    ) -> Result<(Self, Vec<Capability>), String> {
        let mut layout = Layout::of_this_kernel(config).map_err(|error| reason(&error))?;
        let version = pins.map(|pins| version(pins, &layout, config)).transpose()?;
        if let Some(mask) = version.as_ref().and_then(mask_in) {
            layout.set_mask(mask);
        }
        let mut object = make_maps(config, &layout, version.as_ref())?;
        set_rules(&mut object)?;
        set_agent(&mut object, config, layout.mask())?;
        let Map::RingBuf(ring) = map(&mut object, "RECORDS")? else {
            return Err("map RECORDS is no ring buffer".to_owned());
        };
        let mut ring = RingReader::new(ring).map_err(|error| reason(&error))?;
        let stats =
            PerCpuArray::try_from(map(&mut object, "STATS")?).map_err(|error: MapError| reason(&error))?;
        let mut folds = Folds::new(
            fold_map(&mut object, "FOLDS_EVEN")?,
            fold_map(&mut object, "FOLDS_ODD")?,
            Array::try_from(map(&mut object, "FOLDS_ACTIVE")?).map_err(|error: MapError| reason(&error))?,
        );
        let mut progress = version.as_ref().map(Progress::open).transpose()?;
        let mut found = None;
        if let (Some(version), Some(progress)) = (&version, &mut progress) {
            let resume = progress.resume(ring.first(), newest).map_err(|error| reason(&error))?;
            if !ring.resume(resume.place) {
                return Err(format!(
                    "what is pinned in {} does not fit together: `tapio-edge-agent uninstall` removes it",
                    version.map("RECORDS").display()
                ));
            }
            ring.write_down(Progress::freed(version));
            folds.resume(resume.mark.reached.drained).map_err(|error| reason(&error))?;
            found = Some(Box::new(Found::new(resume)));
        }
        let others = others(pins, version.as_ref());
        let (attachments, capabilities) =
            attach::attach_all(&mut object, config, &layout, version.as_ref(), &others);
        let loaded = Loaded { attachments, stats, folds, version };
        if let Some(found) = &mut found {
            found.attached(&loaded.attachments);
            found.earlier = others.into_iter().map(|other| Earlier::take(other, newest)).collect();
        }
        Ok((Self { loaded: Some(loaded), ring: Some(ring), progress, found }, capabilities))
    }

    /// Hands out what was found pinned, once.
    pub const fn take_found(&mut self) -> Option<Box<Found>> {
        self.found.take()
    }

    /// Hands out where the spool's thread writes down how far it is, once.
    pub const fn take_progress(&mut self) -> Option<Progress> {
        self.progress.take()
    }

    /// Hands out the reader of the records, once; it lives on a thread of its own.
    pub const fn take_ring(&mut self) -> Option<RingReader> {
        self.ring.take()
    }

    /// What every probe has counted since it was loaded, in the order of [`ProbeId::ALL`].
    ///
    /// # Errors
    /// The probes are not loaded, or the kernel refuses the counters.
    pub fn stats(&self) -> Result<Vec<ProbeCounters>, ProbesError> {
        let loaded = self.loaded.as_ref().ok_or(ProbesError::NotLoaded)?;
        // The kernel's counters first: what the first program of a probe missed, the second has counted by then.
        let runs = ProbeId::ALL.map(|probe| loaded.kernel_run(probe.program()));
        let again = loaded.kernel_run(TCP_STATE_AGAIN);
        let counted = |(probe, run): (ProbeId, Option<KernelRun>)| {
            let stats = loaded.stats_of(probe as u32)?;
            if probe != ProbeId::TcpState {
                return Ok(ProbeCounters { probe, stats, run });
            }
            let own = loaded.stats_of(TCP_STATE_AGAIN_SLOT)?;
            let run = run.map(|run| run.with_second(again.unwrap_or_default(), own.hits));
            let mut both = stats;
            both.add(&own);
            Ok(ProbeCounters { probe, stats: both, run })
        };
        ProbeId::ALL.into_iter().zip(runs).map(counted).collect()
    }

    /// Makes the kernel measure the time that programs take, as long as the result is kept: it costs some tens of
    /// nanoseconds per hit, so it is for the agent's look at its own budget now and then, not for always.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn measure_kernel_time() -> Result<OwnedFd, ProbesError> {
        aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(ProbesError::Measure)
    }

    /// Detaches probes for good: the last thing to do before an end that leaves nothing, and the last rung when the node's
    /// budget is exceeded. Returns when none of them can run any more; what they recorded and counted stays readable.
    ///
    /// # Errors
    /// The probes are not loaded, or the kernel cannot tell that they have ended.
    pub fn detach(&mut self, probes: &[ProbeId]) -> Result<(), ProbesError> {
        let loaded = self.loaded.as_mut().ok_or(ProbesError::NotLoaded)?;
        let coming_off = loaded.attachments.iter_mut().filter(|of| probes.contains(&of.probe));
        // The second program of a probe before the first, without which it would take everything for missed.
        for attachment in coming_off.rev() {
            let probe = attachment.probe.name();
            attachment
                .detach(loaded.version.as_ref())
                .map_err(|source| ProbesError::Detach { probe, source })?;
        }
        folds::wait_for_running_programs()
    }

    /// Visits the failed system calls that were counted but that no record has carried yet, and forgets them; those in
    /// maps that outlive the agent when `told`, the last drain whose failures are in the spool, says so. To be called every
    /// second or so; costs one grace period of the kernel, so not from a thread in a hurry. Nothing is drained as long as
    /// the drain before waits to be told.
    ///
    /// # Errors
    /// The probes are not loaded, or the kernel refuses a map. Nothing is lost: what was not visited is visited by a
    /// later call.
    pub fn drain_folded(
        &mut self,
        told: u64,
        visit: impl FnMut(&tapio_kernel_abi::FailedSyscall),
    ) -> Result<Option<DrainedFolds>, ProbesError> {
        self.loaded.as_mut().ok_or(ProbesError::NotLoaded)?.folds.drain(told, visit)
    }
}

impl Loaded {
    /// The counters of one program, summed over all processors.
    fn stats_of(&self, slot: u32) -> Result<ProbeStats, ProbesError> {
        sum_of(&self.stats, slot).map_err(|source| ProbesError::Map { map: "STATS", source })
    }

    fn kernel_run(&self, program: &str) -> Option<KernelRun> {
        let attachment = self.attachments.iter().find(|attachment| attachment.name == program)?;
        counters::kernel_run(&attachment.program)
    }
}

fn sum_of(stats: &PerCpuArray<MapData, ProbeStats>, slot: u32) -> Result<ProbeStats, MapError> {
    let mut sum = ProbeStats::default();
    for slot in stats.get(&slot, 0)?.iter() {
        sum.add(slot);
    }
    Ok(sum)
}

/// The folder of what this object is on this host.
fn version(pins: &Pins, layout: &Layout, config: &ProbesConfig) -> Result<Version, String> {
    let identity = layout.identity(MANIFEST, config);
    let version = pins.version(&format!("{PINNED_LAYOUT}-{identity:016x}"));
    version.make().map_err(|error| reason(&error))?;
    Ok(version)
}

/// All that is pinned beside `version`: of other objects, or made for other choices.
fn others(pins: Option<&Pins>, version: Option<&Version>) -> Vec<Version> {
    let found = pins.map_or_else(|| Ok(Vec::new()), Pins::versions).unwrap_or_else(|error| {
        tracing::warn!(error = reason(&error), "what other versions pinned cannot be found");
        Vec::new()
    });
    found.into_iter().filter(|other| Some(other) != version).collect()
}

/// What an agent before mixed socket keys with: the programs that it left go on with it.
fn mask_in(version: &Version) -> Option<u64> {
    let map = Map::from_map_data(MapData::from_pin(version.map("AGENT")).ok()?).ok()?;
    let agent: Array<MapData, u64> = map.try_into().ok()?;
    agent.get(&AGENT_SOCK_KEY_MASK, 0).ok().filter(|mask| *mask != 0)
}

/// Makes the maps, or opens those that are pinned, and parses the programs.
fn make_maps(config: &ProbesConfig, layout: &Layout, version: Option<&Version>) -> Result<Ebpf, String> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for global in &layout.globals {
        match global {
            layout::Global::Word { name, value } => loader.override_global(name, value, true),
            layout::Global::Long { name, value } => loader.override_global(name, value, true),
        };
    }
    if let Some(version) = version {
        for name in MAPS {
            loader.map_pin_path(name, version.map(name));
        }
    }
    let object = loader
        .map_max_entries("RECORDS", config.ring_bytes)
        .map_max_entries("OWNERS", config.owners_max)
        .map_max_entries("FOLDS_EVEN", config.folds_max)
        .map_max_entries("FOLDS_ODD", config.folds_max)
        .load(OBJECT)
        .map_err(|error| reason(&error))?;
    // Programs of several lives share their maps: each must be among those that are pinned.
    let unknown =
        object.maps().map(|(name, _)| name).find(|name| !name.starts_with('.') && !MAPS.contains(name));
    match unknown.map(|name| format!("the object holds a map {name} that the agent does not know")) {
        Some(fault) => Err(fault),
        None => Ok(object),
    }
}

fn map(object: &mut Ebpf, name: &str) -> Result<Map, String> {
    object.take_map(name).ok_or_else(|| format!("the object does not hold map {name}"))
}

fn fold_map(object: &mut Ebpf, name: &str) -> Result<HashMap<MapData, FoldKey, FoldValue>, String> {
    HashMap::try_from(map(object, name)?).map_err(|error: MapError| reason(&error))
}

fn set_rules(object: &mut Ebpf) -> Result<(), String> {
    // Borrowed, not taken: the programs refer to the map when they are loaded.
    let map = object.map_mut("SYSCALLS").ok_or("the object does not hold map SYSCALLS")?;
    let mut rules: Array<&mut MapData, SyscallRule> =
        Array::try_from(map).map_err(|error: MapError| reason(&error))?;
    for (number, rule) in syscalls::rules() {
        rules.set(number, rule, 0).map_err(|error| reason(&error))?;
    }
    Ok(())
}

/// Tells the programs who is not reported, and the next agent what this one chose.
fn set_agent(object: &mut Ebpf, config: &ProbesConfig, mask: u64) -> Result<(), String> {
    let map = object.map_mut("AGENT").ok_or("the object does not hold map AGENT")?;
    let mut agent: Array<&mut MapData, u64> =
        Array::try_from(map).map_err(|error: MapError| reason(&error))?;
    let tgid = config.ignored_tgid;
    let mut set = |place, value| agent.set(place, value, 0).map_err(|error| reason(&error));
    // Nobody is hidden while number and start do not belong together.
    set(AGENT_TGID, 0)?;
    set(AGENT_SOCK_KEY_MASK, mask)?;
    set(AGENT_START, start_nanos(tgid))?;
    set(AGENT_TGID, u64::from(tgid))
}

/// When a process started at the earliest, by the boot clock; 0 where procfs does not say. Field 22 of proc(5), in clock
/// ticks; the name before it may have anything but a parenthesis behind it.
fn start_nanos(tgid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{tgid}/stat")).unwrap_or_default();
    let ticks = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(19)?.parse::<u64>().ok());
    let tick_nanos = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    ticks.unwrap_or(0).saturating_mul(tick_nanos)
}

/// An error and its causes on one line, without the verifier's log beyond its last words.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    const REASON_CHARS_MAX: usize = 600;
    let mut text = tapio_daemon::with_causes(error);
    let characters = text.chars().count();
    if characters > REASON_CHARS_MAX {
        text = format!("...{}", text.chars().skip(characters - REASON_CHARS_MAX).collect::<String>());
    }
    if is_forbidden(error) {
        text.push_str(": run the agent as root, or give it CAP_BPF and CAP_PERFMON");
    }
    text.replace('\n', " ")
}

/// Whether the kernel says that the agent lacks a capability. (`EACCES`, unlike `EPERM`, is the verifier's.)
fn is_forbidden(error: &(dyn std::error::Error + 'static)) -> bool {
    let not_permitted = rustix::io::Errno::PERM.raw_os_error();
    let mut link = Some(error);
    while let Some(error) = link {
        let system = error.downcast_ref::<std::io::Error>();
        if system.is_some_and(|error| error.raw_os_error() == Some(not_permitted)) {
            return true;
        }
        link = error.source();
    }
    false
}

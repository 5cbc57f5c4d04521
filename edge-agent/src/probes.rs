//! The agent's eyes in the kernel: loads the eBPF programs one by one and hands out what they see.
//!
//! Owns the embedded object, the attachments (they end when [`Probes`] is dropped; nothing is pinned), the maps and
//! the counters. Must never let one refused hook disturb another, never change what it observes, and never know
//! containers, pods or folding beyond the kernel's own maps: that is the business of those who read the records.
//! This module is the only user of aya. The agent's start calls [`Probes::load`], its reader thread owns the
//! [`RingReader`], its sampler calls [`Probes::stats`] and [`Probes::drain_folded`].

mod btf;
mod capability;
mod config;
mod counters;
mod folds;
mod layout;
mod ring;
mod syscalls;

use std::os::fd::OwnedFd;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::{ProgramError, RawTracePoint, raw_trace_point::RawTracePointLinkId},
};
use tapio_kernel_abi::{
    FoldKey, FoldValue, ProbeId, ProbeStats, SyscallRule, TCP_STATE_AGAIN, TCP_STATE_AGAIN_SLOT,
};

pub use self::{
    btf::BtfError,
    capability::{Capability, CapabilityState},
    config::ProbesConfig,
    counters::{KernelRun, ProbeCounters},
    folds::DrainedFolds,
    layout::LayoutError,
    ring::{BadCounts, RingError, RingReader},
};
use self::{folds::Folds, layout::Layout};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/prebuilt/tapio.bpf.o");

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
        source: aya::maps::MapError,
    },
    /// A probe does not come off.
    #[error("probe {probe} cannot be detached")]
    Detach {
        /// Name of the probe.
        probe: &'static str,
        /// The kernel's answer.
        #[source]
        source: ProgramError,
    },
    /// The kernel does not measure.
    #[error("the kernel does not measure the time that programs take")]
    Measure(#[source] aya::sys::SyscallError),
    /// Waiting until no program runs failed.
    #[error("the kernel cannot tell when all running programs have ended")]
    GracePeriod(#[source] std::io::Error),
}

/// The programs in the kernel. Dropping it detaches all of them.
pub struct Probes {
    loaded: Option<Loaded>,
    ring: Option<RingReader>,
}

struct Loaded {
    /// Of the probes' programs, by name, in the order in which they were attached.
    links: Vec<(ProbeId, &'static str, RawTracePointLinkId)>,
    stats: PerCpuArray<MapData, ProbeStats>,
    folds: Folds,
    // Holds the programs and their links: dropping it detaches them.
    object: Ebpf,
}

impl Probes {
    /// Loads and attaches every probe that is not disabled, each by itself, and says which of them work. Where not
    /// even the maps can be made (no privilege, no BPF, no BTF) every probe has failed, with that as its reason.
    #[must_use]
    pub fn load(config: &ProbesConfig) -> (Self, Vec<Capability>) {
        match Self::load_object(config) {
            Ok((loaded, ring, capabilities)) => {
                (Self { loaded: Some(loaded), ring: Some(ring) }, capabilities)
            }
            Err(reason) => {
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
                (Self { loaded: None, ring: None }, capabilities)
            }
        }
    }

    fn load_object(config: &ProbesConfig) -> Result<(Loaded, RingReader, Vec<Capability>), String> {
        let layout = Layout::of_this_kernel(config).map_err(|error| reason(&error))?;
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for global in &layout.globals {
            match global {
                layout::Global::Word { name, value } => loader.override_global(name, value, true),
                layout::Global::Long { name, value } => loader.override_global(name, value, true),
            };
        }
        let mut object = loader
            .map_max_entries("RECORDS", config.ring_bytes)
            .map_max_entries("OWNERS", config.owners_max)
            .map_max_entries("FOLDS_EVEN", config.folds_max)
            .map_max_entries("FOLDS_ODD", config.folds_max)
            .load(OBJECT)
            .map_err(|error| reason(&error))?;
        set_rules(&mut object)?;
        let ring = RingReader::new(map(&mut object, "RECORDS")?).map_err(|error| reason(&error))?;
        let stats = PerCpuArray::try_from(map(&mut object, "STATS")?)
            .map_err(|error: aya::maps::MapError| reason(&error))?;
        let folds = Folds::new(
            fold_map(&mut object, "FOLDS_EVEN")?,
            fold_map(&mut object, "FOLDS_ODD")?,
            Array::try_from(map(&mut object, "FOLDS_ACTIVE")?)
                .map_err(|error: aya::maps::MapError| reason(&error))?,
        );
        let mut links = Vec::with_capacity(ProbeId::ALL.len());
        let capabilities = ProbeId::ALL
            .into_iter()
            .map(|probe| {
                if config.disabled.contains(&probe) {
                    return Capability::disabled(probe);
                }
                if let Some(missing) = layout.missing_for(probe) {
                    return Capability::failed(probe, missing);
                }
                let tracepoint = config.tracepoint(probe);
                match attach(&mut object, probe.program(), tracepoint) {
                    Ok(link) => links.push((probe, probe.program(), link)),
                    Err(reason) => return Capability::failed(probe, reason),
                }
                if probe == ProbeId::TcpState {
                    // Behind the first, which tells it what is left to do.
                    match attach(&mut object, TCP_STATE_AGAIN, tracepoint) {
                        Ok(link) => links.push((probe, TCP_STATE_AGAIN, link)),
                        Err(reason) => tracing::warn!(
                            probe = probe.name(),
                            reason,
                            "state changes that interrupt another are lost, and counted as recursion"
                        ),
                    }
                }
                Capability::working(probe)
            })
            .collect();
        Ok((Loaded { links, stats, folds, object }, ring, capabilities))
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
        let runs = ProbeId::ALL.map(|probe| counters::kernel_run(&loaded.object, probe.program()));
        let again = counters::kernel_run(&loaded.object, TCP_STATE_AGAIN);
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

    /// Detaches probes for good: the last thing to do before a clean end, and the last rung when the node's budget is
    /// exceeded. Returns when none of them can run any more; what they recorded and counted stays readable.
    ///
    /// # Errors
    /// The probes are not loaded, or the kernel cannot tell that they have ended.
    pub fn detach(&mut self, probes: &[ProbeId]) -> Result<(), ProbesError> {
        let loaded = self.loaded.as_mut().ok_or(ProbesError::NotLoaded)?;
        let coming_off: Vec<_> = loaded.links.extract_if(.., |(probe, ..)| probes.contains(probe)).collect();
        // The second program of a probe before the first, without which it would take everything for missed.
        for (probe, name, link) in coming_off.into_iter().rev() {
            let program = loaded.object.program_mut(name);
            if let Some(Ok(program)) = program.map(<&mut RawTracePoint>::try_from) {
                program.detach(link).map_err(|source| ProbesError::Detach { probe: probe.name(), source })?;
            }
        }
        folds::wait_for_running_programs()
    }

    /// Visits the failed system calls that were counted but that no record has carried yet, and forgets them. To be
    /// called every second or so; costs one grace period of the kernel, so not from a thread in a hurry.
    ///
    /// # Errors
    /// The probes are not loaded, or the kernel refuses a map. Nothing is lost: what was not visited is visited by a
    /// later call.
    pub fn drain_folded(
        &mut self,
        visit: impl FnMut(&tapio_kernel_abi::FailedSyscall),
    ) -> Result<DrainedFolds, ProbesError> {
        self.loaded.as_mut().ok_or(ProbesError::NotLoaded)?.folds.drain(visit)
    }
}

impl Loaded {
    /// The counters of one program, summed over all processors.
    fn stats_of(&self, slot: u32) -> Result<ProbeStats, ProbesError> {
        let slots = self.stats.get(&slot, 0).map_err(|source| ProbesError::Map { map: "STATS", source })?;
        let mut stats = ProbeStats::default();
        for slot in slots.iter() {
            stats.add(slot);
        }
        Ok(stats)
    }
}

fn attach(object: &mut Ebpf, program: &str, tracepoint: &str) -> Result<RawTracePointLinkId, String> {
    let program = object.program_mut(program).ok_or("the object does not hold its program")?;
    let program: &mut RawTracePoint = program.try_into().map_err(|error: ProgramError| reason(&error))?;
    load_patiently(program).map_err(|error| reason(&error))?;
    program.attach(tracepoint).map_err(|error| format!("raw tracepoint {tracepoint}: {}", reason(&error)))
}

/// The verifier gives up with `EAGAIN` when a signal is pending, such as that of a child's end: not the program's
/// fault.
fn load_patiently(program: &mut RawTracePoint) -> Result<(), ProgramError> {
    const ATTEMPTS_MAX: u32 = 8;
    let mut attempt = 1;
    loop {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == std::io::ErrorKind::WouldBlock && attempt < ATTEMPTS_MAX =>
            {
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn map(object: &mut Ebpf, name: &str) -> Result<aya::maps::Map, String> {
    object.take_map(name).ok_or_else(|| format!("the object does not hold map {name}"))
}

fn fold_map(object: &mut Ebpf, name: &str) -> Result<HashMap<MapData, FoldKey, FoldValue>, String> {
    HashMap::try_from(map(object, name)?).map_err(|error: aya::maps::MapError| reason(&error))
}

fn set_rules(object: &mut Ebpf) -> Result<(), String> {
    // Borrowed, not taken: the programs refer to the map when they are loaded.
    let map = object.map_mut("SYSCALLS").ok_or("the object does not hold map SYSCALLS")?;
    let mut rules: Array<&mut MapData, SyscallRule> =
        Array::try_from(map).map_err(|error: aya::maps::MapError| reason(&error))?;
    for (number, rule) in syscalls::rules() {
        rules.set(number, rule, 0).map_err(|error| reason(&error))?;
    }
    Ok(())
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

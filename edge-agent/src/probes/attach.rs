//! Programs and their attachments: each loaded and attached by itself, or taken over from an agent that is gone.

use aya::{
    Ebpf,
    programs::{
        ProgramError, ProgramFd, RawTracePoint,
        links::{FdLink, PinnedLink},
    },
};
use tapio_kernel_abi::{ProbeId, TCP_STATE_AGAIN};

use super::{Capability, PinsError, ProbesConfig, layout::Layout, pins::Version, reason};

/// A program that is attached.
pub(super) struct Attachment {
    pub(super) probe: ProbeId,
    /// The program's.
    pub(super) name: &'static str,
    pub(super) program: ProgramFd,
    /// Whether this process loaded it: then the kernel began to count about it anew.
    pub(super) is_fresh: bool,
    /// It is detached when this is dropped, unless it has a name in bpffs.
    link: Option<FdLink>,
}

impl Attachment {
    /// Takes over what an agent before left attached. What is only half there is removed.
    fn adopt(version: &Version, probe: ProbeId, name: &'static str) -> Option<Self> {
        let link = PinnedLink::from_pin(version.link(name)).ok();
        let program = RawTracePoint::from_pin(version.program(name)).ok();
        let program = program.and_then(|program| program.fd().ok()?.try_clone().ok());
        if let (Some(link), Some(program)) = (link, program) {
            return Some(Self { probe, name, program, is_fresh: false, link: Some(link.into()) });
        }
        if let Err(error) = version.forget(name) {
            tracing::warn!(%error, program = name, "what is left of a probe cannot be removed");
        }
        None
    }

    /// Takes the program off; what the kernel counted about it stays readable.
    pub(super) fn detach(&mut self, version: Option<&Version>) -> Result<(), PinsError> {
        if self.link.is_some() {
            if let Some(version) = version {
                version.forget(self.name)?;
            }
            self.link = None;
        }
        Ok(())
    }

    /// Attaches a program that [`load`] has loaded, under a name in bpffs if there is a `version`.
    fn make(
        object: &mut Ebpf,
        version: Option<&Version>,
        probe: ProbeId,
        name: &'static str,
        tracepoint: &str,
    ) -> Result<Self, String> {
        let program = program_of(object, name)?;
        let descriptor = program.fd().map_err(|error| reason(&error))?;
        let descriptor = descriptor.try_clone().map_err(|error| reason(&error))?;
        if let Some(version) = version {
            // Before the link: where that is, the program is.
            program.pin(version.program(name)).map_err(|error| reason(&error))?;
        }
        let attached = program.attach(tracepoint);
        let link = attached
            .and_then(|link| program.take_link(link))
            .map_err(|error| format!("raw tracepoint {tracepoint}: {}", reason(&error)))?;
        let mut link = FdLink::from(link);
        if let Some(version) = version {
            link = link.pin(version.link(name)).map_err(|error| reason(&error))?.into();
        }
        Ok(Self { probe, name, program: descriptor, is_fresh: true, link: Some(link) })
    }
}

/// Attaches what is wanted, or takes it over; takes off what is not wanted any more.
pub(super) fn attach_all(
    object: &mut Ebpf,
    config: &ProbesConfig,
    layout: &Layout,
    version: Option<&Version>,
    others: &[Version],
) -> (Vec<Attachment>, Vec<Capability>) {
    let mut attachments = Vec::with_capacity(ProbeId::ALL.len() + 1);
    let mut capabilities = Vec::with_capacity(ProbeId::ALL.len());
    for probe in ProbeId::ALL {
        let is_disabled = config.disabled.contains(&probe);
        if is_disabled || layout.missing_for(probe).is_some() {
            // The second program of a probe before the first.
            for name in programs_of(probe).rev() {
                version.into_iter().chain(others).for_each(|version| forget(version, name));
            }
        }
        if is_disabled {
            capabilities.push(Capability::disabled(probe));
            continue;
        }
        if let Some(missing) = layout.missing_for(probe) {
            capabilities.push(Capability::failed(probe, missing));
            continue;
        }
        let mut attach = |name| attach(object, version, others, probe, name, config.tracepoint(probe));
        let capability = match attach(probe.program()) {
            Ok(attachment) => {
                attachments.push(attachment);
                Capability::working(probe)
            }
            Err(reason) => {
                capabilities.push(Capability::failed(probe, reason));
                continue;
            }
        };
        if probe == ProbeId::TcpState {
            // Behind the first, which tells it what is left to do.
            match attach(TCP_STATE_AGAIN) {
                Ok(attachment) => attachments.push(attachment),
                Err(reason) => tracing::warn!(
                    probe = probe.name(),
                    reason,
                    "state changes that interrupt another are lost, and counted as recursion"
                ),
            }
        }
        capabilities.push(capability);
    }
    (attachments, capabilities)
}

fn programs_of(probe: ProbeId) -> impl DoubleEndedIterator<Item = &'static str> {
    let second = (probe == ProbeId::TcpState).then_some(TCP_STATE_AGAIN);
    std::iter::once(probe.program()).chain(second)
}

fn attach(
    object: &mut Ebpf,
    version: Option<&Version>,
    others: &[Version],
    probe: ProbeId,
    name: &'static str,
    tracepoint: &str,
) -> Result<Attachment, String> {
    if let Some(adopted) = version.and_then(|version| Attachment::adopt(version, probe, name)) {
        others.iter().for_each(|other| forget(other, name));
        return Ok(adopted);
    }
    // Verified before the one of another version goes: nobody sees anything in between, and both would see everything.
    let loaded = load(object, name);
    others.iter().for_each(|other| forget(other, name));
    let made = loaded.and_then(|()| Attachment::make(object, version, probe, name, tracepoint));
    if let (Err(_), Some(version)) = (&made, version) {
        forget(version, name);
    }
    made
}

fn forget(version: &Version, name: &str) {
    if let Err(error) = version.forget(name) {
        tracing::warn!(error = reason(&error), program = name, "a pinned probe cannot be removed");
    }
}

/// Has the kernel verify a program.
fn load(object: &mut Ebpf, name: &str) -> Result<(), String> {
    load_patiently(program_of(object, name)?).map_err(|error| reason(&error))
}

fn program_of<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut RawTracePoint, String> {
    let program = object.program_mut(name).ok_or("the object does not hold its program")?;
    program.try_into().map_err(|error: ProgramError| reason(&error))
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

//! One program and its attachment: loaded and attached by itself, or taken over from an agent that is gone.

use aya::{
    Ebpf,
    programs::{
        ProgramError, ProgramFd, RawTracePoint,
        links::{FdLink, PinnedLink},
    },
};
use tapio_kernel_abi::ProbeId;

use super::{PinsError, pins::Version, reason};

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
    pub(super) fn adopt(version: &Version, probe: ProbeId, name: &'static str) -> Option<Self> {
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
    pub(super) fn make(
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

/// Has the kernel verify a program.
pub(super) fn load(object: &mut Ebpf, name: &str) -> Result<(), String> {
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

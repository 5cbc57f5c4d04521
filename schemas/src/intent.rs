//! What an event means: its coarse kind, its severity, how its trace link is known, and the intents that rules name.

use serde::{Deserialize, Serialize};

macro_rules! coded {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $code:literal $variant:ident $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(rename_all = "kebab-case")]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $code,)* }

        impl $name {
            /// All values, by code.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The code on the wire and in ClickHouse.
            #[must_use]
            pub const fn code(self) -> u8 {
                self as u8
            }

            /// The value of a code; a code of a newer version reads as the default.
            #[must_use]
            pub fn from_code(code: u8) -> Self {
                match code { $($code => Self::$variant,)* _ => Self::default() }
            }

            /// The name in APIs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The value of a name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}
pub(crate) use coded;

coded! {
    /// The coarse kind of an event.
    EventKind {
        /// Of a kind that this version does not know.
        #[default]
        0 Unknown "unknown",
        /// A process began, changed its program or ended.
        1 Process "process",
        /// Memory: kills, growth, pressure.
        2 Memory "memory",
        /// A system call failed.
        3 Syscall "syscall",
        /// A connection.
        4 Network "network",
        /// A request and its response.
        5 Request "request",
        /// A measured value.
        6 Metric "metric",
        /// A container began or ended.
        7 Container "container",
        /// A fatal signal.
        8 Signal "signal",
        /// What Tapio says of itself: capability, budget, losses.
        9 Agent "agent",
    }
}

coded! {
    /// How bad an event is in itself.
    Severity {
        /// Normal.
        #[default]
        0 Info "info",
        /// Worth knowing.
        1 Notice "notice",
        /// Suspicious.
        2 Warning "warning",
        /// Something failed.
        3 Error "error",
        /// Something is down.
        4 Critical "critical",
    }
}

coded! {
    /// How a link (to a trace, to another entity) is known.
    LinkKind {
        /// There is no link.
        #[default]
        0 None "none",
        /// It was seen: the bytes carried it, or exactly one request was open on the thread.
        1 Observed "observed",
        /// It was derived, and there were other candidates. It never decides alone.
        2 Inferred "inferred",
    }
}

macro_rules! intents {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*

        /// Every intent that the built-in sources emit. Rules may name no other.
        pub const ALL: &[&str] = &[$($text),*];
    };
}

intents! {
    /// A process was forked.
    PROCESS_STARTED = "process-started";
    /// A process changed its program.
    PROCESS_EXECUTED = "process-executed";
    /// A process ended by itself with code 0.
    PROCESS_EXITED = "process-exited";
    /// A process ended by itself with another code.
    PROCESS_FAILED = "process-failed";
    /// A process ended by itself with another code, and its container with it: the process was the container's first, or
    /// the one whose code the first ended with.
    CONTAINER_FAILED = "container-failed";
    /// A process was ended by a signal.
    PROCESS_KILLED = "process-killed";
    /// A signal that ends processes was sent.
    FATAL_SIGNAL = "fatal-signal";
    /// The kernel chose a victim for want of memory.
    OOM_KILL = "oom-kill";
    /// A container's memory use, sampled.
    MEMORY_SAMPLE = "memory-sample";
    /// A container's memory use grows steadily.
    MEMORY_GROWTH = "memory-growth";
    /// A file could not be opened or run.
    FILE_ACCESS_FAILED = "file-access-failed";
    /// A program looked for a file in vain that it had always found before, when it started in an earlier container of the
    /// pod.
    FILE_VANISHED = "file-vanished";
    /// An address could not be bound.
    ADDRESS_IN_USE = "address-in-use";
    /// A process listens on an address that another one could not have: since it began to, or since a minute before, until
    /// the other one failed.
    ADDRESS_HELD = "address-held";
    /// Another system call failed.
    SYSCALL_FAILED = "syscall-failed";
    /// A connection was established by this side.
    CONNECTION_OPENED = "connection-opened";
    /// A connection was refused: nobody listens there.
    CONNECTION_REFUSED = "connection-refused";
    /// A connection was not answered.
    CONNECTION_TIMED_OUT = "connection-timed-out";
    /// A connection could not be made for another reason.
    CONNECTION_FAILED = "connection-failed";
    /// The other side broke an open connection.
    CONNECTION_RESET = "connection-reset";
    /// This side broke an open connection.
    RESET_SENT = "reset-sent";
    /// A connection ended in order.
    CONNECTION_CLOSED = "connection-closed";
    /// A segment was sent again.
    RETRANSMISSION = "retransmission";
    /// A process listens on an address.
    LISTENING = "listening";
    /// A process no longer listens on an address.
    LISTENING_ENDED = "listening-ended";
    /// A request was served, status below 500.
    REQUEST_SERVED = "request-served";
    /// A request was answered with a status of 500 or above.
    REQUEST_SERVED_ERROR = "request-served-error";
    /// A call to another service was answered, status below 500.
    REQUEST_CALLED = "request-called";
    /// A call to another service was answered with a status of 500 or above.
    REQUEST_CALLED_ERROR = "request-called-error";
    /// A call to another service got no answer: its connection ended first.
    REQUEST_UNANSWERED = "request-unanswered";
    /// A request had no answer when the process that served or made it ended, or when its connection ended.
    REQUEST_UNFINISHED = "request-unfinished";
    /// A container was first seen.
    CONTAINER_SEEN = "container-seen";
    /// A container's control group is gone.
    CONTAINER_GONE = "container-gone";
    /// An agent began to observe a node.
    AGENT_STARTED = "agent-started";
    /// A probe works, or does not and why.
    PROBE_CAPABILITY = "probe-capability";
    /// What the rules of node scope say, on the node itself. It never changes an answer further up.
    NODE_VERDICT = "node-verdict";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: codes and names of this version and of a newer one.
    /// Guarantees: both directions agree, serde uses the same names, and unknown codes read as the default.
    #[test]
    fn codes_and_names_agree() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::from_code(kind.code()), *kind);
            assert_eq!(EventKind::from_name(kind.as_str()), Some(*kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert_eq!(Severity::from_code(250), Severity::Info);
    }
}

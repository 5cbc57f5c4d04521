//! The whole road, with real parts: QUIC, the spool, the embedded ClickHouse.

#[cfg(test)]
#[path = "road/away.rs"]
mod away;
#[cfg(test)]
#[path = "road/checking.rs"]
mod checking;
#[cfg(test)]
#[path = "road/dashboard.rs"]
mod dashboard;
#[cfg(test)]
#[path = "road/enrolment.rs"]
mod enrolment;
#[cfg(test)]
#[path = "road/findings.rs"]
mod findings;
#[cfg(test)]
#[path = "road/grpc.rs"]
mod grpc;
#[cfg(test)]
#[path = "road/grpc_python.rs"]
mod grpc_python;
#[cfg(test)]
#[path = "road/hostile.rs"]
mod hostile;
#[cfg(test)]
#[path = "road/identity.rs"]
mod identity;
#[cfg(test)]
#[path = "road/recording.rs"]
mod recording;
#[cfg(test)]
#[path = "road/recovering.rs"]
mod recovering;
#[cfg(test)]
#[path = "road/refusals.rs"]
mod refusals;
#[cfg(test)]
#[path = "road/storing.rs"]
mod storing;
#[cfg(test)]
#[path = "road/support.rs"]
mod support;
#[cfg(test)]
#[path = "road/waiting.rs"]
mod waiting;

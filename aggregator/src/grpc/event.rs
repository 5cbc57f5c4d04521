//! `EventService`: events as they arrive.

use futures_util::stream;
use tapio_proto::v1::{
    self, EventFilter as Asked, StreamEventsRequest, StreamEventsResponse,
    event_service_server::EventService, missed::Reason,
};
use tapio_schemas::{
    ids::{ClusterId, NodeId, TraceId},
    intent::{EventKind, Severity},
};
use tonic::{Request, Response, Status};

use super::{
    refusal::{Refusals, distinct},
    stream::{Answers, Place, Streams, ended},
};
use crate::live::{Delivery, EventFilter, Live, Missed, Subscription};

/// Characters of a pod's uid: a UUID has 36, a static pod's is a hash.
const POD_UID_CHARS_MAX: usize = 63;
/// Digits of a container's id.
const CONTAINER_ID_DIGITS: usize = 64;

/// The service.
#[derive(Debug)]
pub(super) struct Events {
    live: Live,
    cluster: ClusterId,
    streams: Streams,
}

impl Events {
    pub(super) const fn new(live: Live, cluster: ClusterId, streams: Streams) -> Self {
        Self { live, cluster, streams }
    }

    fn stream(&self, request: StreamEventsRequest) -> Result<EventStream, Status> {
        let filter = filter(request.filter.unwrap_or_default(), &self.cluster)?;
        let place = self.streams.enter()?;
        Ok(EventStream { place, subscription: self.live.subscribe(filter), is_over: false })
    }
}

/// The filter of a request to an aggregator that serves `own`.
fn filter(asked: Asked, own: &ClusterId) -> Result<EventFilter, Status> {
    let Asked { cluster, nodes, kinds, severity_min, container_ids, pod_uids, trace_ids } = asked;
    let mut refusals = Refusals::default();
    if !cluster.is_empty()
        && let Some(cluster) = refusals.check("filter.cluster", cluster.parse::<ClusterId>())
        && cluster != *own
    {
        let reason = format_args!("this aggregator serves {own}; leave it empty, or ask {cluster}'s");
        refusals.add("filter.cluster", reason);
    }
    let nodes = refusals.all("filter.nodes", nodes, |node| node.parse::<NodeId>());
    let name = v1::EventKind::as_str_name;
    let kinds = distinct(kinds.into_iter().filter_map(|number| {
        let value = |code| Some(EventKind::from_code(code));
        refusals.enumerated::<v1::EventKind, _>("filter.kinds", number, name, value)
    }));
    let name = v1::Severity::as_str_name;
    let value = |code| Some(Severity::from_code(code));
    let severity_min =
        refusals.enumerated::<v1::Severity, _>("filter.severity_min", severity_min, name, value);
    let container_ids = refusals.all("filter.container_ids", container_ids, |id| {
        let is_whole = id.len() == CONTAINER_ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_whole.then_some(id).ok_or("it is the runtime's whole id, 64 hexadecimal digits")
    });
    let pod_uids = refusals.all("filter.pod_uids", pod_uids, |uid| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let fits = (1..=POD_UID_CHARS_MAX).contains(&uid.len()) && uid.bytes().all(is_plain);
        fits.then_some(uid).ok_or("it is the uid of a pod as Kubernetes gives it, not its name")
    });
    let trace_ids = refusals.all("filter.trace_ids", trace_ids, |id| match id.parse::<TraceId>() {
        Ok(trace) if trace.is_none() => Err("all zeros stand for no trace".to_owned()),
        other => other.map_err(|error| error.to_string()),
    });
    refusals.finish()?;
    let severity_min = severity_min.unwrap_or_default();
    Ok(EventFilter { nodes, kinds, severity_min, container_ids, pod_uids, trace_ids })
}

#[tonic::async_trait]
impl EventService for Events {
    type StreamEventsStream = Answers<StreamEventsResponse>;

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let stream = self.streams.counted("StreamEvents", self.stream(request.into_inner()))?;
        let answers: Self::StreamEventsStream = Box::pin(stream::unfold(stream, EventStream::step));
        Ok(Response::new(answers))
    }
}

/// An open stream.
struct EventStream {
    place: Place,
    subscription: Subscription,
    is_over: bool,
}

impl EventStream {
    /// The next message and what is left; nothing where the stream is over.
    async fn step(mut self) -> Option<(Result<StreamEventsResponse, Status>, Self)> {
        if self.is_over {
            return None;
        }
        // Both branches are cancel-safe. What is there already is told before the end.
        let delivery = tokio::select! {
            biased;
            delivery = self.subscription.next() => delivery,
            () = self.place.stopped() => {
                self.is_over = true;
                return Some((Err(ended()), self));
            }
        };
        Some((Ok(message(delivery)), self))
    }
}

fn message(delivery: Delivery) -> StreamEventsResponse {
    let Delivery { missed, events, .. } = delivery;
    let Missed { slow_subscriber, server_busy } = missed;
    let by_reason: Vec<_> = [(Reason::SlowSubscriber, slow_subscriber), (Reason::ServerBusy, server_busy)]
        .into_iter()
        .filter(|(_reason, count)| *count > 0)
        .map(|(reason, count)| v1::missed::Count { reason: reason.into(), count })
        .collect();
    let missed = (!by_reason.is_empty()).then_some(v1::Missed { by_reason });
    StreamEventsResponse { missed, events }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;

    /// Scenario: a request in which every field is wrong, and one in which all are right.
    /// Guarantees: every field is named once with what is allowed, in words and as details; the other is taken.
    #[test]
    fn wrong_filters_are_named_all_at_once() {
        let own: ClusterId = "demo".parse().unwrap();
        let wrong = Asked {
            cluster: "other".to_owned(),
            nodes: vec!["n1".to_owned(), "Node 1".to_owned()],
            kinds: vec![1, 77, 78],
            severity_min: -1,
            container_ids: vec!["abc".to_owned()],
            pod_uids: vec!["pod".to_owned(); 65],
            trace_ids: vec!["0".repeat(32)],
        };
        let status = filter(wrong, &own).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let violations = status.get_details_bad_request().unwrap().field_violations;
        let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
        let all = ["cluster", "nodes", "kinds", "severity_min", "container_ids", "pod_uids", "trace_ids"];
        assert_eq!(fields, all.map(|field| format!("filter.{field}")));
        for (field, says) in [
            ("kinds", "EVENT_KIND_PROCESS"),
            ("severity_min", "SEVERITY_ERROR"),
            ("cluster", "demo"),
            ("pod_uids", "at most 64"),
        ] {
            let field = format!("filter.{field}");
            let violation = violations.iter().find(|violation| violation.field == field).unwrap();
            assert!(violation.description.contains(says), "{violation:?}");
            assert!(status.message().contains(&violation.description));
        }

        let right = Asked {
            cluster: "demo".to_owned(),
            nodes: ["n1", "n2", "n1"].map(str::to_owned).into(),
            kinds: vec![4, 4],
            severity_min: 3,
            container_ids: vec!["a".repeat(64)],
            pod_uids: vec!["1f7c3b0e-9f0b-4a51-8a58-3f1c2d9f0e11".to_owned()],
            trace_ids: vec!["7".repeat(32)],
        };
        let taken = filter(right, &own).unwrap();
        assert_eq!((taken.kinds, taken.severity_min), (vec![EventKind::Network], Severity::Error));
        assert_eq!(taken.nodes.len(), 2);
        assert_eq!(filter(Asked::default(), &own).unwrap(), EventFilter::default());
    }
}

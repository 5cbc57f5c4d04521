//! `CorrelationService`: findings, from memory.

mod page;

use std::{sync::Arc, vec};

use futures_util::stream;
use prost::Message as _;
use tapio_proto::v1::{
    self, FindingFilter, GetFindingRequest, ListFindingsRequest, ListFindingsResponse, Missed,
    StreamFindingsRequest, StreamFindingsResponse, correlation_service_server::CorrelationService,
    missed::Reason,
};
use tapio_schemas::{
    finding::{Finding, FindingState},
    intent::Severity,
};
use tonic::{Request, Response, Status};

use self::page::Page;
use super::{
    refusal::{Refusals, distinct},
    stream::{Answers, Place, Streams, ended},
};
use crate::recent::{Cursor, Followed, Follower, Following, Recent};

/// A page ends where it has so many bytes: with one more finding it is below the 4 MiB that clients accept where they
/// are not told otherwise.
const PAGE_BYTES_MAX: usize = 2 << 20;

/// The service.
#[derive(Debug)]
pub(super) struct Correlation {
    recent: Recent,
    streams: Streams,
}

/// Which findings are wanted.
#[derive(Debug)]
struct Wanted {
    states: Vec<FindingState>,
    severity_min: Severity,
}

impl Wanted {
    fn of(filter: Option<FindingFilter>, refusals: &mut Refusals) -> Self {
        let FindingFilter { states, severity_min } = filter.unwrap_or_default();
        let mut state = |number| {
            let name = v1::FindingState::as_str_name;
            refusals.enumerated::<v1::FindingState, _>("filter.states", number, name, FindingState::from_code)
        };
        let states = distinct(states.into_iter().filter_map(&mut state));
        let name = v1::Severity::as_str_name;
        let field = "filter.severity_min";
        let severity_min =
            refusals.enumerated::<v1::Severity, _>(field, severity_min, name, Severity::from_code);
        Self { states, severity_min: severity_min.unwrap_or_default() }
    }

    fn takes(&self, finding: &Finding) -> bool {
        (self.states.is_empty() || self.states.contains(&finding.state))
            && finding.verdict.severity >= self.severity_min
    }
}

impl Correlation {
    pub(super) const fn new(recent: Recent, streams: Streams) -> Self {
        Self { recent, streams }
    }

    fn stream(&self, request: StreamFindingsRequest) -> Result<FindingStream, Status> {
        let StreamFindingsRequest { filter, include_open, resume_cursor } = request;
        let mut refusals = Refusals::default();
        let wanted = Wanted::of(filter, &mut refusals);
        let cursor = if resume_cursor.is_empty() {
            None
        } else {
            refusals.check("resume_cursor", resume_cursor.parse::<Cursor>())
        };
        let following = self.recent.follow(cursor);
        let following = refusals.check("resume_cursor", following);
        refusals.finish()?;
        let Some(Following { open, missed, follower }) = following else {
            return Err(Status::internal("a refusal without a reason"));
        };
        let place = self.streams.enter()?;
        let open = if include_open { open } else { Vec::new() };
        let start = StreamFindingsResponse {
            missed: missed_of(Reason::NoLongerKept, missed),
            finding: None,
            cursor: follower.cursor().to_string(),
        };
        Ok(FindingStream {
            place,
            wanted,
            open: open.into_iter(),
            start: Some(start),
            follower,
            is_over: false,
        })
    }

    fn get(&self, request: &GetFindingRequest) -> Result<v1::Finding, Status> {
        let id = request.id.as_str();
        let digits = id.strip_prefix("f-").unwrap_or_default();
        if digits.len() != 16 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let mut refusals = Refusals::default();
            let shown: String = id.chars().take(64).collect();
            refusals
                .add("id", format_args!("{shown:?} is no finding's id: it is f- and 16 hexadecimal digits"));
            refusals.finish()?;
        }
        let found = self.recent.finding(id).map(|finding| v1::Finding::from(&*finding));
        found.ok_or_else(|| {
            Status::not_found(format!(
                "no finding {id} is known here; this aggregator keeps the latest, central has the history"
            ))
        })
    }

    fn list(&self, request: ListFindingsRequest) -> Result<ListFindingsResponse, Status> {
        let ListFindingsRequest { filter, page_size, page_token } = request;
        let mut refusals = Refusals::default();
        let wanted = Wanted::of(filter, &mut refusals);
        let page = Page::of(page_size, &page_token, &mut refusals);
        refusals.finish()?;
        let mut findings = self.recent.findings();
        findings.retain(|finding| wanted.takes(finding) && page.is_behind(finding));
        findings.sort_by(|a, b| page::key(b).cmp(&page::key(a)));
        let (mut told, mut bytes) = (Vec::new(), 0);
        for finding in findings.iter().take(page.size) {
            let message = v1::Finding::from(&**finding);
            bytes += message.encoded_len();
            told.push(message);
            if bytes >= PAGE_BYTES_MAX {
                break;
            }
        }
        let last =
            (told.len() < findings.len()).then(|| findings.get(told.len().saturating_sub(1))).flatten();
        let next_page_token = last.map(|finding| page::token(finding)).unwrap_or_default();
        Ok(ListFindingsResponse { findings: told, next_page_token })
    }
}

#[tonic::async_trait]
impl CorrelationService for Correlation {
    type StreamFindingsStream = Answers<StreamFindingsResponse>;

    async fn stream_findings(
        &self,
        request: Request<StreamFindingsRequest>,
    ) -> Result<Response<Self::StreamFindingsStream>, Status> {
        let stream = self.streams.counted("StreamFindings", self.stream(request.into_inner()))?;
        let answers: Self::StreamFindingsStream = Box::pin(stream::unfold(stream, FindingStream::step));
        Ok(Response::new(answers))
    }

    async fn get_finding(
        &self,
        request: Request<GetFindingRequest>,
    ) -> Result<Response<v1::Finding>, Status> {
        self.streams.counted("GetFinding", self.get(request.get_ref())).map(Response::new)
    }

    async fn list_findings(
        &self,
        request: Request<ListFindingsRequest>,
    ) -> Result<Response<ListFindingsResponse>, Status> {
        self.streams.counted("ListFindings", self.list(request.into_inner())).map(Response::new)
    }
}

/// An open stream.
struct FindingStream {
    place: Place,
    wanted: Wanted,
    open: vec::IntoIter<Arc<Finding>>,
    start: Option<StreamFindingsResponse>,
    follower: Follower,
    is_over: bool,
}

impl FindingStream {
    /// The next message and what is left; nothing where the stream is over.
    async fn step(mut self) -> Option<(Result<StreamFindingsResponse, Status>, Self)> {
        if self.is_over {
            return None;
        }
        let wanted = &self.wanted;
        if let Some(finding) = self.open.find(|finding| wanted.takes(finding)) {
            let message = StreamFindingsResponse { finding: Some((&*finding).into()), ..Default::default() };
            return Some((Ok(message), self));
        }
        if let Some(start) = self.start.take() {
            return Some((Ok(start), self));
        }
        loop {
            // Both branches are cancel-safe. What is there already is told before the end.
            let followed = tokio::select! {
                biased;
                followed = self.follower.next() => followed,
                () = self.place.stopped() => {
                    self.is_over = true;
                    return Some((Err(ended()), self));
                }
            };
            let cursor = self.follower.cursor().to_string();
            let message = match followed {
                Followed::Revision(finding) if self.wanted.takes(&finding) => {
                    StreamFindingsResponse { missed: None, finding: Some((&*finding).into()), cursor }
                }
                Followed::Revision(_) => continue,
                Followed::Missed(count) => StreamFindingsResponse {
                    missed: missed_of(Reason::SlowSubscriber, count),
                    finding: None,
                    cursor,
                },
            };
            return Some((Ok(message), self));
        }
    }
}

fn missed_of(reason: Reason, count: u64) -> Option<Missed> {
    let by_reason = vec![v1::missed::Count { reason: reason.into(), count }];
    (count > 0).then_some(Missed { by_reason })
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{metrics::Metrics, recent::tests::finding};

    fn service(findings_max: usize) -> (Recent, Correlation) {
        let recent = Recent::new(findings_max);
        let metrics = Metrics::register(&tapio_daemon::Registry::new()).grpc;
        let streams = Streams::new(1, metrics, CancellationToken::new());
        (recent.clone(), Correlation::new(recent, streams))
    }

    fn ids(response: &ListFindingsResponse) -> Vec<u64> {
        let number = |id: &str| u64::from_str_radix(&id[2..], 16).unwrap();
        response.findings.iter().map(|finding| number(&finding.id)).collect()
    }

    /// Scenario: pages are read while findings are announced, revised and forgotten.
    /// Guarantees: each finding that was there all the time is on exactly one page, the last announced first.
    #[test]
    fn pages_stay_right_while_findings_are_announced() {
        let (recent, service) = service(9);
        let open = |number, revision| finding(number, revision, FindingState::Open, Severity::Error);
        (1..=7).for_each(|number| recent.put(number, open(number, 1)));
        let page = |token: &str| {
            let request = ListFindingsRequest { page_size: 3, page_token: token.to_owned(), filter: None };
            service.list(request).unwrap()
        };
        let first = page("");
        assert_eq!(ids(&first), [7, 6, 5]);
        recent.put(8, open(8, 1));
        recent.put(9, open(5, 2));
        let second = page(&first.next_page_token);
        assert_eq!(ids(&second), [4, 3, 2]);
        (9..=11).for_each(|number| recent.put(number + 1, open(number, 1)));
        let third = page(&second.next_page_token);
        assert_eq!((ids(&third), third.next_page_token.as_str()), (Vec::new(), ""), "1 and 2 are forgotten");
        assert_eq!(ids(&page("")), [11, 10, 9]);
    }

    /// Scenario: findings of all states and severities are listed with filters.
    /// Guarantees: those that meet both filters come, and nothing else.
    #[test]
    fn lists_are_filtered() {
        let (recent, service) = service(100);
        let mut place = 0;
        for state in FindingState::ALL {
            for severity in Severity::ALL {
                place += 1;
                recent.put(place, finding(place, 1, *state, *severity));
            }
        }
        let listed = |states: &[FindingState], severity_min: Severity| {
            let states = states.iter().map(|state| i32::from(state.code())).collect();
            let filter = FindingFilter { states, severity_min: severity_min.code().into() };
            let request = ListFindingsRequest { filter: Some(filter), ..Default::default() };
            ids(&service.list(request).unwrap()).len()
        };
        assert_eq!(listed(&[], Severity::Info), 15);
        assert_eq!(listed(&[FindingState::Open], Severity::Info), 5);
        assert_eq!(listed(&[FindingState::Open, FindingState::Resolved], Severity::Error), 4);
    }
}

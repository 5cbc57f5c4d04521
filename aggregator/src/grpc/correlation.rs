//! `CorrelationService`: findings, from memory.

mod page;

use std::{collections::HashSet, sync::Arc, vec};

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
    answers::Budget,
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
    answers: Budget,
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
            // Zero is "unspecified", and each code one more.
            let value = |number: u8| number.checked_sub(1).map(FindingState::from_code);
            refusals.enumerated::<v1::FindingState, _>("filter.states", number, name, value)
        };
        let states = distinct(states.into_iter().filter_map(&mut state));
        let name = v1::Severity::as_str_name;
        let field = "filter.severity_min";
        let severity_min = refusals
            .enumerated::<v1::Severity, _>(field, severity_min, name, |code| Some(Severity::from_code(code)));
        Self { states, severity_min: severity_min.unwrap_or_default() }
    }

    fn takes(&self, finding: &Finding) -> bool {
        (self.states.is_empty() || self.states.contains(&finding.state))
            && finding.verdict.severity >= self.severity_min
    }
}

impl Correlation {
    pub(super) const fn new(recent: Recent, streams: Streams, answers: Budget) -> Self {
        Self { recent, streams, answers }
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
        if include_open && !resume_cursor.is_empty() {
            refusals.add(
                "include_open",
                "a stream begins with what is open, or goes on from resume_cursor; leave one of them out",
            );
        }
        refusals.finish()?;
        let place = self.streams.enter()?;
        // What stood at an earlier cursor is not known any more.
        let is_resumed = cursor.is_some();
        let Following { findings, missed, follower } =
            self.recent.follow(cursor).map_err(|error| lost(&error.to_string()))?;
        if missed > 0 {
            return Err(lost(&format!(
                "of what came after it up to {missed} revisions are not kept any more"
            )));
        }
        let cursor = follower.cursor().to_string();
        let start = StreamFindingsResponse { cursor, ..Default::default() };
        let (inside, outside): (Vec<_>, Vec<_>) =
            findings.into_iter().partition(|finding| wanted.takes(finding));
        let outside = if is_resumed { Vec::new() } else { outside };
        let is_told = |finding: &Arc<Finding>| include_open && finding.state == FindingState::Open;
        let open: Vec<_> = inside.into_iter().filter(is_told).collect();
        Ok(FindingStream {
            place,
            wanted,
            outside: outside.iter().map(|finding| finding.id.clone()).collect(),
            // Twice what may be known, so that those that are not are seldom looked for.
            outside_max: self.recent.findings_max().saturating_mul(2),
            recent: self.recent.clone(),
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
        let answer = self.get(request.get_ref()).and_then(|finding| self.answers.charged(finding));
        self.streams.counted("GetFinding", answer)
    }

    async fn list_findings(
        &self,
        request: Request<ListFindingsRequest>,
    ) -> Result<Response<ListFindingsResponse>, Status> {
        let answer = self.list(request.into_inner()).and_then(|page| self.answers.charged(page));
        self.streams.counted("ListFindings", answer)
    }
}

/// What is answered to a cursor that a stream cannot go on from.
fn lost(reason: &str) -> Status {
    Status::failed_precondition(format!(
        "resume_cursor: {reason}; begin anew: without it, with include_open, and forget the findings that are not told then"
    ))
}

/// An open stream.
struct FindingStream {
    place: Place,
    wanted: Wanted,
    /// Findings that do not meet the filter as far as the subscriber knows.
    outside: HashSet<String>,
    outside_max: usize,
    recent: Recent,
    /// Those that the stream begins with.
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
        if let Some(finding) = self.open.next() {
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
                Followed::Revision(finding) => {
                    let Some(left_filter) = self.place_of(&finding) else { continue };
                    let finding = Some((&*finding).into());
                    StreamFindingsResponse { missed: None, finding, cursor, left_filter }
                }
                Followed::Missed(count) => StreamFindingsResponse {
                    missed: missed_of(Reason::SlowSubscriber, count),
                    cursor,
                    ..Default::default()
                },
            };
            return Some((Ok(message), self));
        }
    }

    /// Whether a revision is the one with which its finding leaves the filter; nothing where it is not told.
    fn place_of(&mut self, finding: &Finding) -> Option<bool> {
        if self.wanted.takes(finding) {
            self.outside.remove(&finding.id);
            return Some(false);
        }
        if self.outside.len() >= self.outside_max {
            self.recent.retain_known(&mut self.outside);
        }
        // The first revision has none before it that met the filter.
        let leaves = self.outside.insert(finding.id.clone()) && finding.revision > 1;
        leaves.then_some(true)
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
        let answers = Budget::new(metrics.calls_refused.clone());
        let streams = Streams::new(1, metrics, CancellationToken::new());
        (recent.clone(), Correlation::new(recent, streams, answers))
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
            let states = states.iter().map(|state| i32::from(state.code()) + 1).collect();
            let filter = FindingFilter { states, severity_min: severity_min.code().into() };
            let request = ListFindingsRequest { filter: Some(filter), ..Default::default() };
            ids(&service.list(request).unwrap()).len()
        };
        assert_eq!(listed(&[], Severity::Info), 15);
        assert_eq!(listed(&[FindingState::Open], Severity::Info), 5);
        assert_eq!(listed(&[FindingState::Open, FindingState::Resolved], Severity::Error), 4);
    }
    /// The next message that is there.
    async fn next(stream: FindingStream) -> (StreamFindingsResponse, FindingStream) {
        let (message, stream) = stream.step().await.unwrap();
        (message.unwrap(), stream)
    }

    fn request(include_open: bool, resume_cursor: &str) -> StreamFindingsRequest {
        let states = vec![v1::FindingState::Open.into()];
        let filter = Some(FindingFilter { states, ..Default::default() });
        StreamFindingsRequest { filter, include_open, resume_cursor: resume_cursor.to_owned() }
    }

    /// Scenario: somebody follows open findings; one that was told, one that was not, and one of before the stream are
    /// resolved, one of them twice, and one opens again; then the subscriber comes back with its first cursor.
    /// Guarantees: a finding that leaves the filter is told once as leaving it, one that never met it is not told.
    #[tokio::test]
    async fn a_finding_that_leaves_the_filter_is_told_once() {
        let (recent, service) = service(100);
        let put = |place, number, revision, state| {
            recent.put(place, finding(number, revision, state, Severity::Error));
        };
        let (open, resolved) = (FindingState::Open, FindingState::Resolved);
        put(0, 1, 1, open);
        put(1, 2, 1, resolved);
        let (start, mut stream) = next(service.stream(request(false, "")).unwrap()).await;
        for (place, (number, revision, state)) in (2..).zip([
            (1, 2, resolved),
            (2, 2, resolved),
            (1, 3, resolved),
            (3, 1, resolved),
            (1, 4, open),
            (1, 5, resolved),
        ]) {
            put(place, number, revision, state);
        }
        let mut told = Vec::new();
        while told.len() < 3 {
            let (message, rest) = next(stream).await;
            stream = rest;
            told.push((message.finding.unwrap().revision, message.left_filter));
        }
        assert_eq!(told, [(2, true), (4, false), (5, true)]);
        drop(stream);
        // What stood at the cursor is not known to the new stream: 2 may have met the filter.
        let (_start, mut stream) = next(service.stream(request(false, &start.cursor)).unwrap()).await;
        let mut told = Vec::new();
        while told.len() < 4 {
            let (message, rest) = next(stream).await;
            stream = rest;
            let finding = message.finding.unwrap();
            told.push((finding.id.ends_with('1'), finding.revision, message.left_filter));
        }
        assert_eq!(told, [(true, 2, true), (false, 2, true), (true, 4, false), (true, 5, true)]);
    }

    /// Scenario: more findings that do not meet the filter than are kept come by, then one that does leaves it; a stream
    /// begins with an open finding, which is then resolved.
    /// Guarantees: what a stream remembers stays bounded, and no finding is told as leaving that never met the filter;
    /// one that the stream began with is told as leaving.
    #[tokio::test]
    async fn what_a_stream_remembers_is_bounded() {
        let (recent, service) = service(4);
        let put = |place, number, revision, state| {
            recent.put(place, finding(number, revision, state, Severity::Error));
        };
        let (open, resolved) = (FindingState::Open, FindingState::Resolved);
        put(0, 1, 1, open);
        let (first, stream) = next(service.stream(request(true, "")).unwrap()).await;
        assert_eq!(first.finding.unwrap().revision, 1);
        let (_start, mut stream) = next(stream).await;
        (1..100).for_each(|place| put(place, 100 + place, if place % 2 == 0 { 2 } else { 1 }, resolved));
        put(100, 1, 2, resolved);
        let mut told = Vec::new();
        while told.last() != Some(&(1, true)) {
            let (message, rest) = next(stream).await;
            stream = rest;
            let id = message.finding.unwrap().id;
            told.push((u64::from_str_radix(&id[2..], 16).unwrap(), message.left_filter));
        }
        // Of those whose first revision was not seen it is not known that they never met it.
        assert!(told.iter().all(|(number, left)| *left && (*number == 1 || number % 2 == 0)), "{told:?}");
        assert!(stream.outside.len() <= 9, "{}", stream.outside.len());
    }

    /// Scenario: a subscriber comes back when more was announced than is kept; another begins with a cursor and with what
    /// is open.
    /// Guarantees: the first is refused with FAILED_PRECONDITION and what to do, not continued elsewhere; the second with
    /// the field's name; without the cursor it gets what is open and then a place.
    #[tokio::test]
    async fn a_lost_cursor_is_refused() {
        let (recent, service) = service(3);
        let (start, stream) = next(service.stream(request(true, "")).unwrap()).await;
        drop(stream);
        (0..2_000)
            .for_each(|place| recent.put(place, finding(place, 1, FindingState::Open, Severity::Error)));
        let lost = service.stream(request(false, &start.cursor)).err().unwrap();
        assert_eq!(lost.code(), tonic::Code::FailedPrecondition);
        assert!(lost.message().contains("not kept any more; begin anew"), "{lost}");
        let both = service.stream(request(true, &start.cursor)).err().unwrap();
        assert_eq!(both.code(), tonic::Code::InvalidArgument);
        assert!(both.message().starts_with("include_open: "), "{both}");
        let mut stream = service.stream(request(true, "")).unwrap();
        for number in 1_997..2_000_u64 {
            let (message, rest) = next(stream).await;
            stream = rest;
            assert_eq!(message.finding.unwrap().id, format!("f-{number:016x}"));
        }
        assert!(next(stream).await.0.finding.is_none());
    }
}

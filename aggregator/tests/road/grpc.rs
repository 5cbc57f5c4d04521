//! What programs get over gRPC: findings and events as they come, refusals that name the field, an end with a reason.

use std::{fs, time::Duration};

use tapio_aggregator::Running;
use tapio_identity::Name;
use tapio_proto::v1::{
    EventFilter, EventKind, Finding, FindingFilter, FindingState, GetFindingRequest, ListFindingsRequest,
    StreamEventsRequest, StreamEventsResponse, StreamFindingsRequest, StreamFindingsResponse,
    correlation_service_client::CorrelationServiceClient, event_service_client::EventServiceClient,
    missed::Reason,
};
use tapio_wire::Position;
use tokio::time::{Instant, timeout};
use tonic::{
    Code, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_health::{ServingStatus, pb::HealthCheckRequest, pb::health_client::HealthClient};

use super::{
    findings::story,
    support::{Node, PATIENCE, World, frame, now},
    waiting::{LARGE_ROWS, large},
};

/// How a client comes to the aggregator, without a certificate of its own.
fn endpoint(world: &World, running: &Running, identity: Option<Identity>) -> Endpoint {
    let authority = fs::read(world.grpc_files().authority).unwrap();
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let address = format!("https://localhost:{}", running.grpc_addr.port());
    Endpoint::from_shared(address).unwrap().tls_config(tls).unwrap()
}

async fn channel(world: &World, running: &Running) -> Channel {
    endpoint(world, running, None).connect().await.unwrap()
}

/// Tells a story and then that time passes, until a finding comes out of the stream.
async fn until_finding(node: &mut Node, stream: &mut Streaming<StreamFindingsResponse>) -> (Finding, String) {
    node.offer(&frame(node.source, Position::new(1, 1), &story(now()))).await;
    let deadline = Instant::now() + PATIENCE;
    for sequence in 2.. {
        assert!(Instant::now() < deadline, "no finding came");
        node.offer(&frame(node.source, Position::new(1, sequence), &[])).await;
        node.step().await;
        if let Ok(message) = timeout(Duration::from_millis(50), stream.message()).await {
            let StreamFindingsResponse { missed, finding, cursor, left_filter: _ } =
                message.unwrap().unwrap();
            assert_eq!(missed, None);
            return (finding.unwrap(), cursor);
        }
    }
    unreachable!("sequences do not end");
}

/// Scenario: a program follows findings before there are any; a story becomes one; others ask for it in every way;
/// the aggregator is restarted while the first still follows.
/// Guarantees: every way gives the same finding; the stream ends with UNAVAILABLE and a reason; after the restart an
/// old cursor gives what came after it, and a cursor of nowhere is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn findings_are_followed_listed_and_resumed() {
    let world = World::new();
    let running = world.without_store().await;
    let mut client = CorrelationServiceClient::new(channel(&world, &running).await);
    let request = StreamFindingsRequest { include_open: true, ..Default::default() };
    let mut stream = client.stream_findings(request.clone()).await.unwrap().into_inner();
    let start = stream.message().await.unwrap().unwrap();
    assert!(start.finding.is_none() && !start.cursor.is_empty());

    let mut node = world.node(&running, "n1", 1).await;
    let (told, cursor) = until_finding(&mut node, &mut stream).await;
    assert_eq!((told.revision, told.state()), (1, FindingState::Open));
    assert!(told.title.contains("is failing because"), "{}", told.title);
    assert_ne!(cursor, start.cursor);

    let got = client.get_finding(GetFindingRequest { id: told.id.clone() }).await.unwrap().into_inner();
    let kept = running.recent.finding(&told.id).unwrap();
    assert_eq!((&got.id, got.announced_at_micros), (&told.id, told.announced_at_micros));
    assert_eq!(got, Finding::from(&*kept));
    let listed = |filter| ListFindingsRequest { filter: Some(filter), ..Default::default() };
    let open = FindingFilter { states: vec![FindingState::Open.into()], ..Default::default() };
    let page = client.list_findings(listed(open)).await.unwrap().into_inner();
    assert_eq!((page.findings.len(), page.next_page_token.as_str()), (1, ""));
    let resolved = FindingFilter { states: vec![FindingState::Resolved.into()], ..Default::default() };
    assert!(client.list_findings(listed(resolved)).await.unwrap().into_inner().findings.is_empty());

    let mut other = client.stream_findings(request).await.unwrap().into_inner();
    assert_eq!(other.message().await.unwrap().unwrap().finding.unwrap().id, told.id);
    let start_of_other = other.message().await.unwrap().unwrap();
    assert!(start_of_other.finding.is_none() && start_of_other.cursor != start.cursor);
    drop((node, other));
    running.stop().await.unwrap();
    let ended = loop {
        match stream.message().await {
            Ok(Some(_revision)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(ended.message().contains("the aggregator ends"), "{ended}");

    let running = world.without_store().await;
    let mut client = CorrelationServiceClient::new(channel(&world, &running).await);
    let resume =
        |cursor: &str| StreamFindingsRequest { resume_cursor: cursor.to_owned(), ..Default::default() };
    let mut stream = client.stream_findings(resume(&start.cursor)).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().missed, None);
    assert_eq!(stream.message().await.unwrap().unwrap().finding.unwrap(), told);
    let log = start.cursor.split('.').nth(1).unwrap();
    for (foreign, code) in [
        (format!("r2.{log}.ffff.0"), Code::FailedPrecondition),
        ("r2.1.0.0".to_owned(), Code::FailedPrecondition),
        ("next".to_owned(), Code::InvalidArgument),
    ] {
        let refused = client.stream_findings(resume(&foreign)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{foreign}");
        assert!(refused.message().starts_with("resume_cursor: "), "{refused}");
        assert_eq!(refused.message().contains("begin anew"), code == Code::FailedPrecondition, "{refused}");
    }
    let both = StreamFindingsRequest { include_open: true, ..resume(&start.cursor) };
    let refused = client.stream_findings(both).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("include_open: "), "{refused}");
    running.stop().await.unwrap();
}

/// Scenario: calls with ids, filters, pages and tokens that mean nothing.
/// Guarantees: each is refused with the field's name and what is allowed; what is merely not there is NOT_FOUND.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_refused_by_field() {
    let world = World::new();
    let running = world.without_store().await;
    let mut client = CorrelationServiceClient::new(channel(&world, &running).await);
    let refused = client.get_finding(GetFindingRequest { id: "f-12".to_owned() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("16 hexadecimal digits"), "{refused}");
    let id = format!("f-{}", "0".repeat(16));
    assert_eq!(client.get_finding(GetFindingRequest { id }).await.unwrap_err().code(), Code::NotFound);
    let wrong = ListFindingsRequest {
        filter: Some(FindingFilter { states: vec![9], severity_min: 9 }),
        page_size: 1_001,
        page_token: "p1.zz".to_owned(),
    };
    let refused = client.list_findings(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    for says in
        ["filter.states", "FINDING_STATE_OPEN", "filter.severity_min", "page_size", "1 to 1000", "page_token"]
    {
        assert!(refused.message().contains(says), "{says:?} in {refused}");
    }
    running.stop().await.unwrap();
}

/// The next message; a subscriber that gets none is a failure.
async fn message(stream: &mut Streaming<StreamEventsResponse>) -> StreamEventsResponse {
    timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap()
}

/// Scenario: programs subscribe with different filters; two nodes ship events; one subscription too many is asked for.
/// Guarantees: each gets what its filter wants, whole and in order, and nothing else; the one too many is refused with
/// the reason until another ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_streamed_as_they_arrive() {
    let world = World::new();
    let mut config = world.config("mode = \"server\"\nurl = \"http://127.0.0.1:9\"");
    config.grpc.streams_max = 3;
    let running = tapio_aggregator::start(config).await.unwrap();
    let mut client = EventServiceClient::new(channel(&world, &running).await);
    let mut subscribe = async |request: StreamEventsRequest| client.stream_events(request).await;
    let of = |filter| StreamEventsRequest { filter: Some(filter) };
    let trace = of(EventFilter { trace_ids: vec!["07".repeat(16)], ..Default::default() });
    let memory = of(EventFilter {
        cluster: "demo".to_owned(),
        kinds: vec![EventKind::Memory.into()],
        container_ids: vec!["b".repeat(64)],
        pod_uids: vec!["pod-b".to_owned()],
        ..Default::default()
    });
    let all = of(EventFilter { nodes: vec!["n2".to_owned()], ..Default::default() });
    let mut of_trace = subscribe(trace).await.unwrap().into_inner();
    let mut of_memory = subscribe(memory).await.unwrap().into_inner();
    let mut of_node = subscribe(all.clone()).await.unwrap().into_inner();
    let refused = subscribe(all.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("grpc.streams_max"), "{refused}");

    let mut first = world.node(&running, "n1", 1).await;
    let mut second = world.node(&running, "n2", 1).await;
    let events = story(now());
    first.offer(&frame(first.source, Position::new(1, 1), &events)).await;
    first.until_received(1).await;
    second.offer(&frame(second.source, Position::new(1, 1), &events)).await;
    second.until_received(1).await;

    for node in ["n1", "n2"] {
        let told = message(&mut of_trace).await;
        assert_eq!(told.missed, None);
        let intents: Vec<_> = told.events.iter().map(|event| event.intent.as_str()).collect();
        assert_eq!(intents, ["connection-reset", "request-unanswered", "request-served-error"]);
        let served = &told.events[2];
        assert_eq!((served.cluster.as_str(), served.node.as_str()), ("demo", node));
        assert_eq!(served.network.as_ref().unwrap().status, 500);
        assert_eq!(served.trace.as_ref().unwrap().span_id, "0000000000000004");
        assert_eq!(served.network.as_ref().unwrap().local_address, "127.0.0.1");
        let told = message(&mut of_memory).await;
        let intents: Vec<_> = told.events.iter().map(|event| event.intent.as_str()).collect();
        assert_eq!(intents, ["memory-growth", "oom-kill"]);
    }
    let told = message(&mut of_node).await;
    assert_eq!(told.events.len(), events.len());
    let ids: Vec<_> = told.events.iter().map(|event| event.id.clone()).collect();
    let expected: Vec<_> =
        (0..10).map(|row| Position::new(1, 1).of_source(second.source).row(row).to_string()).collect();
    assert_eq!(ids, expected);

    drop(of_node);
    let deadline = Instant::now() + PATIENCE;
    while subscribe(all.clone()).await.is_err() {
        assert!(Instant::now() < deadline, "the place was not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop((of_trace, of_memory));
    running.stop().await.unwrap();
}

/// Scenario: of two subscribers one does not read while more arrives than its queue and its connection hold; then the
/// aggregator begins to end, and only then it reads.
/// Guarantees: the node is not held up and the other gets everything; the slow one is told how much it missed, told and
/// missed are all there was, and its stream ends with the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_does_not_read_is_told_what_it_missed() {
    const FRAMES: u64 = 40;
    let world = World::new();
    let running = world.without_store().await;
    let subscribe = async || {
        let mut client = EventServiceClient::new(channel(&world, &running).await);
        client.stream_events(StreamEventsRequest::default()).await.unwrap().into_inner()
    };
    let (mut slow, mut quick) = (subscribe().await, subscribe().await);
    let mut node = world.node(&running, "n1", 1).await;
    for sequence in 1..=FRAMES {
        let frame = large(&node, sequence);
        node.offer(&frame).await;
        node.until_received(sequence).await;
        let mut told = 0;
        while told < LARGE_ROWS {
            let response = message(&mut quick).await;
            assert_eq!(response.missed, None);
            told += response.events.len() as u64;
        }
    }
    let (mut told, mut missed) = (0, 0);
    while told + missed < FRAMES * LARGE_ROWS {
        let response = message(&mut slow).await;
        told += response.events.len() as u64;
        for count in response.missed.into_iter().flat_map(|missed| missed.by_reason) {
            assert_eq!(count.reason(), Reason::SlowSubscriber);
            missed += count.count;
        }
    }
    assert_eq!(told + missed, FRAMES * LARGE_ROWS);
    assert!(told > LARGE_ROWS && missed > LARGE_ROWS, "{told} {missed}");
    let metrics = running.registry.encode().unwrap();
    let counted = format!("tapio_live_missed_events_total{{reason=\"slow-subscriber\"}} {missed}");
    assert!(metrics.contains(&counted), "{metrics}");
    drop(node);
    let (stopped, ended) = tokio::join!(running.stop(), slow.message());
    stopped.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
}

/// Scenario: clients without TLS, without the certificate that the configuration asks of them, and with that of a node,
/// where machines may read and where they may not.
/// Guarantees: only the last is served, where it may be, and health says that the services serve.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_tls_is_spoken_and_clients_may_have_to_show_a_certificate() {
    let world = World::new();
    let config = |machines_may_read| {
        let mut config = world.config("mode = \"server\"\nurl = \"http://127.0.0.1:9\"");
        config.grpc.client_authority = Some(world.grpc_files().authority);
        config.grpc.machines_may_read = machines_may_read;
        config
    };
    let running = tapio_aggregator::start(config(false)).await.unwrap();
    let plain = Endpoint::from_shared(format!("http://{}", running.grpc_addr)).unwrap();
    let list = ListFindingsRequest::default();
    if let Ok(channel) = plain.connect().await {
        assert!(CorrelationServiceClient::new(channel).list_findings(list.clone()).await.is_err());
    }
    if let Ok(channel) = endpoint(&world, &running, None).connect().await {
        assert!(CorrelationServiceClient::new(channel).list_findings(list.clone()).await.is_err());
    }
    let name = Name::node("tapio.test", "default", "demo", "reader").unwrap();
    let credentials = world.credential_files(&name, "reader");
    let identity = Identity::from_pem(fs::read(credentials.0).unwrap(), fs::read(credentials.1).unwrap());
    let channel = endpoint(&world, &running, Some(identity.clone())).connect().await.unwrap();
    let denied = CorrelationServiceClient::new(channel).list_findings(list.clone()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
    running.stop().await.unwrap();
    let running = tapio_aggregator::start(config(true)).await.unwrap();
    let channel = endpoint(&world, &running, Some(identity)).connect().await.unwrap();
    CorrelationServiceClient::new(channel.clone()).list_findings(list).await.unwrap();
    let mut health = HealthClient::new(channel);
    for service in ["", "tapio.v1.CorrelationService", "tapio.v1.EventService"] {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let request = HealthCheckRequest { service: service.to_owned() };
            let status = health.check(request).await.map(|answer| answer.into_inner().status);
            if status.as_ref().is_ok_and(|status| *status == ServingStatus::Serving as i32) {
                break;
            }
            assert!(Instant::now() < deadline, "{service}: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    running.stop().await.unwrap();
}

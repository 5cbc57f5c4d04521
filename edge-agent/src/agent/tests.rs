use std::collections::VecDeque;

use super::*;

/// An agent without probes and network: what ends it is left.
fn agent(threads: Vec<JoinHandle<()>>, finished: &CancellationToken, folder: &std::path::Path) -> Agent {
    let source = tapio_schemas::ids::SourceId([1; 16]);
    let shelf = Shelf::open(
        Arc::new(RealDisk),
        &folder.join("spool"),
        Room::of_quota(0),
        source,
        Arc::default(),
        Instant::now(),
    )
    .unwrap();
    Agent {
        tasks: JoinSet::new(),
        threads,
        finished: finished.clone(),
        shutdown: CancellationToken::new(),
        telemetry: CancellationToken::new(),
        telemetry_address: ([127, 0, 0, 1], 0).into(),
        capabilities: Vec::new(),
        shelf: Arc::new(shelf),
        _seeing: Health::new().component("probes", SILENCE_MAX),
        pins: None,
        on_exit: OnExit::Remove,
    }
}

/// Scenario: the capture thread panics; a task panics; a shutdown is asked for.
/// Guarantees: the agent ends with an error in the first two cases, and without one in the third; it never waits for a
/// shutdown that nobody asks for.
#[tokio::test]
async fn an_agent_does_not_outlive_its_pipeline() {
    let folder = tempfile::tempdir().unwrap();
    let (frames, outbound) = mpsc::sync_channel::<crate::outgoing::Outbound>(1);
    let finished = CancellationToken::new();
    let source = tapio_schemas::ids::SourceId([1; 16]);
    let losses = Arc::default();
    let (own, device, now) = (folder.path().join("own"), Arc::new(RealDisk), Instant::now());
    let shelf = Shelf::open(device, &own, Room::of_quota(0), source, Arc::clone(&losses), now).unwrap();
    let spooler = Spooler {
        outbound,
        shelf: Arc::new(shelf),
        losses,
        metrics: spooler::Metrics::new(&Registry::new()),
        progress: Health::new().component("spool", SILENCE_MAX),
        finished: finished.clone(),
        shared: Arc::default(),
        marks: VecDeque::new(),
        ring: 0,
    };
    let spooling = spawn("spool", move || spooler.run()).unwrap();
    let capture = spawn("capture", move || {
        let _owned = frames;
        std::panic::resume_unwind(Box::new("capture fails"));
    });
    let mut first = agent(vec![spooling, capture.unwrap()], &finished, folder.path());
    let ended = tokio::time::timeout(Duration::from_secs(10), first.until_end()).await.unwrap();
    assert!(matches!(ended, Err(AgentError::Ended(_))), "{ended:?}");
    first.finish().await;

    let idle = CancellationToken::new();
    let mut second = agent(Vec::new(), &idle, folder.path());
    second.tasks.spawn(async {});
    second.tasks.spawn(async { std::panic::resume_unwind(Box::new("a task fails")) });
    let ended = tokio::time::timeout(Duration::from_secs(10), second.until_end()).await.unwrap();
    assert!(matches!(ended, Err(AgentError::Ended(_))), "{ended:?}");
    second.finish().await;

    let mut third = agent(Vec::new(), &idle, folder.path());
    third.shutdown.cancel();
    assert!(third.until_end().await.is_ok());
    third.finish().await;
}

//! What an aggregator's engine would have taken and announced, and its recording.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
};

use tapio_correlation::{Analysis, AnalysisLimits, Pods, RuleSet, SourceContext, observe_batch};
use tapio_recording::{Encoder, Ending, Entry, Head, NameChange, SourceFact, revision_bytes};
use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder},
    entity::PodIdentity,
    event::{Core, Entity, Kernel, Metric, Network, Trace, UnifiedEvent},
    finding::Finding,
    ids::{SourceId, SpanId, TraceId},
    intent::{self, EventKind, LinkKind},
    ledger::{Fate, Stage},
    units::{ClockOffset, Micros, UnixMicros},
};
use tapio_wire::{
    Position,
    frame::{FrameDecoder, FrameEncoder, FrameLimits, FrameMeta},
};

const EPOCH: UnixMicros = UnixMicros(1_700_000_000_000_000);
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const PROBES: [&str; 4] = ["oom_victim: failed", "payload: failed", "tcp_state: failed", "exit: failed"];
const SHOP: char = 'a';
const PAYMENT: char = 'b';

pub(crate) fn rules() -> Arc<RuleSet> {
    static RULES: OnceLock<Arc<RuleSet>> = OnceLock::new();
    Arc::clone(RULES.get_or_init(|| Arc::new(tapio_compiler::compile_builtin().unwrap())))
}

/// Something that happens, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// A frame that only says that its node lives.
    Quiet { node: u8, since: u64 },
    /// A frame that tells of a kill for memory and what followed from it.
    Story { node: u8, since: u64 },
    /// A node says what it cannot see.
    Blind { node: u8, missing: u8 },
    /// A pod gets a name, or loses it.
    Name { pod: u8, named: bool },
    /// Time passes, and the engine is told.
    Tick(u64),
    /// The engine is told the time as while it sees a spool again.
    CatchUp,
}

/// One entry, owned.
#[derive(Clone, Debug)]
enum Owned {
    Earlier(Vec<u8>),
    Source(SourceFact),
    Names(NameChange),
    Frame(UnixMicros, &'static str, Vec<u8>),
    CatchUp(UnixMicros),
    Tick(UnixMicros, Vec<Vec<u8>>),
}

/// A life of an aggregator, and what was recorded of it.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    owned: Vec<Owned>,
    pub(crate) revisions: Vec<Vec<u8>>,
    pub(crate) findings: Vec<Finding>,
}

impl Live {
    /// A life in which this happens; so many findings were announced before.
    pub(crate) fn of(steps: &[Step], earlier: usize) -> Self {
        let mut live = Self { owned: Vec::new(), revisions: Vec::new(), findings: Vec::new() };
        let mut analysis = new_analysis();
        let earlier: Vec<Finding> =
            if earlier == 0 { Vec::new() } else { story().findings.into_iter().take(earlier).collect() };
        live.owned.extend(earlier.iter().map(|finding| Owned::Earlier(revision_bytes(finding))));
        analysis.adopt(earlier);
        let mut decoder = FrameDecoder::new(FrameLimits::default()).unwrap();
        let mut now = EPOCH;
        let mut sequences = [0_u64; 3];
        let mut missing: HashMap<&str, Vec<String>> = HashMap::new();
        let mut pods: BTreeMap<String, PodIdentity> = BTreeMap::new();
        for step in steps {
            match *step {
                Step::Quiet { node, since } | Step::Story { node, since } => {
                    let name = NODES[usize::from(node)];
                    sequences[usize::from(node)] += 1;
                    let at = now.minus(Micros::from_millis(since));
                    let is_story = matches!(step, Step::Story { .. });
                    let events = if is_story { kill(at) } else { Vec::new() };
                    let bytes = frame(name, sequences[usize::from(node)], at, now, &events);
                    let (header, view) = decoder.decode(&bytes, None).unwrap();
                    let context = SourceContext {
                        node: name,
                        clock_error: Micros(header.meta.clock.error_micros),
                        missing_probes: missing.get(name).map_or(&[], Vec::as_slice),
                    };
                    observe_batch(&view, header.meta.id, &context, &rules(), &mut |input| {
                        analysis.insert(input);
                    });
                    live.owned.push(Owned::Frame(now, name, bytes));
                }
                Step::Blind { node, missing: which } => {
                    let name = NODES[usize::from(node)];
                    let lacks: Vec<String> =
                        PROBES.iter().take(usize::from(which)).map(|probe| (*probe).to_owned()).collect();
                    missing.insert(name, lacks.clone());
                    live.owned
                        .push(Owned::Source(SourceFact { node: name.to_owned(), missing_probes: lacks }));
                }
                Step::Name { pod, named } => {
                    let uid = format!("pod-{}", char::from(b'a' + pod));
                    let change = if named {
                        let service = ["shop", "payment", "stock", "mail"][usize::from(pod)].to_owned();
                        let named = PodIdentity {
                            pod_uid: uid.clone(),
                            pod: uid.clone(),
                            service,
                            ..PodIdentity::default()
                        };
                        pods.insert(uid, named.clone());
                        NameChange { named: vec![named], gone: Vec::new() }
                    } else {
                        pods.remove(&uid);
                        NameChange { named: Vec::new(), gone: vec![uid] }
                    };
                    let by_uid = pods.clone().into_iter().collect();
                    analysis.rename(Arc::new(Pods::new(by_uid, 0)));
                    live.owned.push(Owned::Names(change));
                }
                Step::Tick(millis) => {
                    now = now.plus(Micros::from_millis(millis));
                    let findings = analysis.tick(now);
                    let revisions: Vec<_> = findings.iter().map(revision_bytes).collect();
                    live.revisions.extend(revisions.iter().cloned());
                    live.findings.extend(findings);
                    live.owned.push(Owned::Tick(now, revisions));
                }
                Step::CatchUp => {
                    analysis.catch_up(now);
                    live.owned.push(Owned::CatchUp(now));
                }
            }
        }
        live
    }

    pub(crate) fn head(&self) -> Head {
        Head {
            release: "0.1.0".to_owned(),
            tenant: "default".parse().unwrap(),
            cluster: "demo".parse().unwrap(),
            began: EPOCH,
            part: 1,
            rule_set: rules().version(),
            limits: AnalysisLimits::default(),
        }
    }

    pub(crate) fn entries(&self) -> Vec<Entry<'_>> {
        let mut entries = Vec::new();
        for owned in &self.owned {
            entries.push(match owned {
                Owned::Earlier(bytes) => Entry::Earlier(bytes),
                Owned::Source(fact) => Entry::Source(fact.clone()),
                Owned::Names(change) => Entry::Names(change.clone()),
                Owned::Frame(arrival, node, bytes) => Entry::Frame { arrival: *arrival, node, bytes },
                Owned::CatchUp(now) => Entry::CatchUp(*now),
                Owned::Tick(now, revisions) => {
                    Entry::Tick { now: *now, revisions: u32::try_from(revisions.len()).unwrap() }
                }
            });
            if let Owned::Tick(_, revisions) = owned {
                entries.extend(revisions.iter().map(|bytes| Entry::Revision(bytes)));
            }
        }
        entries
    }

    pub(crate) fn file(&self, ending: Option<Ending>) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = Encoder::begin(&self.head(), &rules(), &mut file);
        for entry in self.entries().into_iter().chain(ending.map(Entry::End)) {
            encoder.put(&entry, &mut file).unwrap();
        }
        file
    }

    /// How many frames there are, and their bytes.
    pub(crate) fn frames(&self) -> (usize, usize) {
        let frames = self.owned.iter().filter_map(|owned| match owned {
            Owned::Frame(_, _, bytes) => Some(bytes.len()),
            _ => None,
        });
        frames.fold((0, 0), |(count, all), bytes| (count + 1, all + bytes))
    }

    fn announcing(&mut self) -> impl Iterator<Item = &mut Vec<Vec<u8>>> {
        self.owned.iter_mut().filter_map(|owned| match owned {
            Owned::Tick(_, revisions) if !revisions.is_empty() => Some(revisions),
            _ => None,
        })
    }

    /// Makes something else of the first revision of the tick that is the `number`th to have some.
    pub(crate) fn rewrite(&mut self, number: usize, edit: impl FnOnce(String) -> String) {
        let revisions = self.announcing().nth(number).unwrap();
        revisions[0] = edit(String::from_utf8(revisions[0].clone()).unwrap()).into_bytes();
    }

    pub(crate) fn remove(&mut self, number: usize) {
        self.announcing().nth(number).unwrap().remove(0);
    }

    pub(crate) fn double_last(&mut self) {
        let revisions = self.announcing().last().unwrap();
        revisions.push(revisions.last().unwrap().clone());
    }
}

/// The story of a kill for memory, told by one node, until it is resolved.
pub(crate) fn story() -> Live {
    let mut steps =
        vec![Step::Quiet { node: 0, since: 0 }, Step::Tick(10_000), Step::Quiet { node: 0, since: 0 }];
    steps.extend([Step::Name { pod: 0, named: true }, Step::Name { pod: 1, named: true }]);
    steps.extend([Step::Story { node: 0, since: 300 }, Step::Tick(50), Step::Tick(2_000)]);
    for _second in 0..45 {
        steps.extend([Step::Quiet { node: 0, since: 0 }, Step::Tick(1_000)]);
    }
    Live::of(&steps, 0)
}

fn new_analysis() -> Analysis {
    let (tenant, cluster) = ("default".parse().unwrap(), "demo".parse().unwrap());
    Analysis::new(rules(), tenant, cluster, AnalysisLimits::default())
}

fn frame(
    node: &str,
    sequence: u64,
    since: UnixMicros,
    until: UnixMicros,
    events: &[UnifiedEvent],
) -> Vec<u8> {
    let mut batch = BatchBuilder::default();
    let ledger = batch.ledger_mut();
    (ledger.since, ledger.until) = (since, until);
    ledger.add(Stage::Kernel, Fate::Carried, "test", "", events.len() as u64);
    for event in events {
        batch.push_event(event).unwrap();
    }
    let mut bytes = AlignedVec::new();
    let rows = batch.finish(&mut bytes).unwrap().rows;
    let id = Position::new(1, sequence).of_source(SourceId::of_name(node));
    let meta = FrameMeta {
        clock: ClockOffset { boot_to_unix_nanos: 0, error_micros: 40 },
        ..FrameMeta::new(id, rows)
    };
    let mut out = Vec::new();
    FrameEncoder::new(FrameLimits::default()).unwrap().encode(meta, &bytes, &mut out).unwrap();
    out
}

fn event(at: UnixMicros, kind: EventKind, intent: &str, probe: &str, who: char, pid: u32) -> UnifiedEvent {
    UnifiedEvent {
        core: Core {
            time_micros: at.0,
            time_error_micros: 1,
            kind,
            probe: probe.to_owned(),
            count: 1,
            intent: intent.to_owned(),
            ..Core::default()
        },
        entity: Some(Entity {
            container_id: who.to_string().repeat(64),
            pod_uid: format!("pod-{who}"),
            ..Entity::default()
        }),
        kernel: Some(Kernel { pid, tid: pid, start_boot_nanos: u64::from(pid) * 1_000, ..Kernel::default() }),
        ..UnifiedEvent::default()
    }
}

fn listening(at: UnixMicros, who: char, pid: u32, local_port: u16) -> UnifiedEvent {
    let local_address = "127.0.0.1".parse().unwrap();
    let network = Network { local_address, local_port, protocol: "tcp".to_owned(), ..Network::default() };
    UnifiedEvent {
        network: Some(network),
        ..event(at, EventKind::Network, intent::LISTENING, "tcp_state", who, pid)
    }
}

fn call(at: UnixMicros, intent: &str, probe: &str, trace: Option<TraceId>) -> UnifiedEvent {
    let address = "127.0.0.1".parse().unwrap();
    let network = Network {
        local_address: address,
        local_port: 40_000,
        remote_address: address,
        remote_port: 9_090,
        protocol: "tcp".to_owned(),
        direction: "out".to_owned(),
        ..Network::default()
    };
    let of = |trace_id| Trace { trace_id, span_id: SpanId(5), link: LinkKind::Observed, ..Trace::default() };
    UnifiedEvent {
        network: Some(network),
        trace: trace.map(of),
        ..event(at, EventKind::Network, intent, probe, SHOP, 100)
    }
}

fn served(at: UnixMicros, trace_id: TraceId) -> UnifiedEvent {
    let network = Network {
        local_address: "127.0.0.1".parse().unwrap(),
        local_port: 8_080,
        protocol: "http".to_owned(),
        direction: "in".to_owned(),
        method: "GET".to_owned(),
        route: "/checkout".to_owned(),
        status: 500,
        ..Network::default()
    };
    UnifiedEvent {
        network: Some(network),
        trace: Some(Trace { trace_id, span_id: SpanId(4), link: LinkKind::Observed, ..Trace::default() }),
        ..event(at, EventKind::Request, intent::REQUEST_SERVED_ERROR, "payload", SHOP, 100)
    }
}

/// payment grows, is killed for memory, shop's calls break, shop answers 500.
fn kill(at: UnixMicros) -> Vec<UnifiedEvent> {
    let limit_bytes = 64 << 20;
    let early = at.minus(Micros::from_secs(5));
    let mut growth = event(early, EventKind::Memory, intent::MEMORY_GROWTH, "memory", PAYMENT, 0);
    growth.metric = Some(Metric { name: "memory.growth".to_owned(), unit: "By/s".to_owned(), value: 3.2e6 });
    growth.kernel = Some(Kernel { size_bytes: 60 << 20, limit_bytes, ..Kernel::default() });
    let mut kill = event(at, EventKind::Memory, intent::OOM_KILL, "oom_victim", PAYMENT, 200);
    if let Some(kernel) = &mut kill.kernel {
        (kernel.size_bytes, kernel.limit_bytes) = (63 << 20, limit_bytes);
    }
    let mut exit =
        event(at.plus(Micros(900)), EventKind::Process, intent::PROCESS_KILLED, "exit", PAYMENT, 200);
    if let Some(kernel) = &mut exit.kernel {
        kernel.signal = 9;
    }
    let trace = TraceId([7; 16]);
    let before = at.minus(Micros::from_secs(8));
    vec![
        listening(before, SHOP, 100, 8_080),
        listening(before, PAYMENT, 200, 9_090),
        call(before.plus(Micros(500)), intent::CONNECTION_OPENED, "tcp_state", None),
        growth,
        kill,
        exit,
        call(at.plus(Micros(2_000)), intent::CONNECTION_RESET, "tcp_reset_recv", Some(trace)),
        call(at.plus(Micros(2_100)), intent::REQUEST_UNANSWERED, "payload", Some(trace)),
        call(at.plus(Micros(3_000)), intent::CONNECTION_REFUSED, "tcp_state", None),
        served(at.plus(Micros(4_000)), trace),
    ]
}

//! A story: containers on nodes, what happened to them, and when. It makes the inputs that agents would have made.

use std::{collections::BTreeMap, sync::Arc};

use tapio_correlation::{Engine, Limits, RuleSet, observe};
use tapio_schemas::{
    entity::{EntityKey, EntityKind, Relation, RelationKind},
    ids::{EventId, FrameId, Incarnation, Sequence, SourceId, TraceId},
    intent::{LinkKind, Severity},
    ledger::{Fate, Ledger, Stage},
    observation::{Input, Observation, SourceProgress, Value},
    units::{Micros, TimeInterval, UnixMicros},
    verdict::Verdict,
};

/// The time 0 of every story.
pub(crate) const EPOCH: u64 = 1_700_000_000_000_000;

pub(crate) fn at(millis: i64) -> UnixMicros {
    UnixMicros(EPOCH.checked_add_signed(millis * 1_000).unwrap())
}

pub(crate) fn container(name: &str) -> EntityKey {
    EntityKey::new(EntityKind::Container, format!("{name:0>64}"))
}

pub(crate) fn trace(number: u8) -> TraceId {
    TraceId([number; 16])
}

/// A story under construction. Times are milliseconds; every service listens on 10.0.0.1 at its own port.
#[derive(Clone, Debug)]
pub(crate) struct Story {
    pub(crate) inputs: Vec<Input>,
    pub(crate) node: &'static str,
    row: u32,
    pub(crate) error_micros: u64,
    missing_probes: Vec<String>,
    frames: BTreeMap<&'static str, u64>,
}

pub(crate) fn source(node: &str) -> SourceId {
    SourceId::of_name(node)
}

impl Story {
    pub(crate) fn new() -> Self {
        Self {
            inputs: Vec::new(),
            node: "node-a",
            row: 0,
            error_micros: 40,
            missing_probes: Vec::new(),
            frames: BTreeMap::new(),
        }
    }

    /// What follows is seen by this node.
    pub(crate) fn on(mut self, node: &'static str) -> Self {
        self.node = node;
        self
    }

    fn id(&mut self) -> EventId {
        self.row += 1;
        let frame = FrameId { source: source(self.node), incarnation: Incarnation(1), sequence: Sequence(1) };
        frame.row(self.row)
    }

    fn observe(
        &mut self,
        intent: &str,
        probe: &str,
        millis: i64,
        who: &str,
        edit: impl FnOnce(&mut Observation),
    ) {
        let id = self.id();
        let mut observation = Observation {
            id,
            intent: intent.to_owned(),
            time: TimeInterval::around(at(millis), Micros(self.error_micros)),
            duration: Micros(0),
            source: source(self.node),
            probe: probe.to_owned(),
            severity: Severity::Error,
            count: 1,
            subject: container(who),
            process: Some(observe::process(self.node, 4_127, 9)),
            peer: None,
            local: None,
            trace: None,
            trace_link: LinkKind::None,
            attributes: BTreeMap::new(),
        };
        edit(&mut observation);
        self.inputs.push(Input::Observation(observation));
    }

    fn relate(&mut self, kind: RelationKind, from: EntityKey, to: EntityKey, millis: i64) {
        let learned_from = self.id();
        self.inputs.push(Input::Relation(Relation {
            kind,
            from,
            to,
            since: at(millis),
            until: at(millis),
            link: LinkKind::Observed,
            learned_from,
        }));
    }

    fn endpoint(port: u16) -> EntityKey {
        EntityKey::new(EntityKind::Endpoint, format!("10.0.0.1:{port}"))
    }

    pub(crate) fn listens(mut self, millis: i64, who: &str, port: u16) -> Self {
        self.relate(RelationKind::Listens, container(who), Self::endpoint(port), millis);
        self.relate(
            RelationKind::RunsIn,
            container(who),
            EntityKey::new(EntityKind::Pod, format!("pod-{who}")),
            millis,
        );
        self
    }

    /// A container, known by its first event, runs in a pod.
    pub(crate) fn runs_in(mut self, millis: i64, who: &str, pod: &str) -> Self {
        let pod = EntityKey::new(EntityKind::Pod, format!("pod-{pod}"));
        self.relate(RelationKind::RunsIn, container(who), pod, millis);
        self
    }

    pub(crate) fn stops_listening(mut self, millis: i64, who: &str) -> Self {
        self.observe("listening-ended", "tcp_state", millis, who, |_| {});
        self
    }

    /// A process of this pid ends with exit code 1, and its container with it.
    pub(crate) fn exits_failing(self, millis: i64, who: &str, pid: u64) -> Self {
        self.of_process("container-failed", "exit", millis, who, pid, |it| {
            it.attributes.insert("kernel.exit_code".into(), Value::Integer(1));
        })
    }

    /// A process of this pid ends with exit code 1, and its container goes on.
    pub(crate) fn helper_fails(self, millis: i64, who: &str, pid: u64) -> Self {
        self.of_process("process-failed", "exit", millis, who, pid, |it| {
            it.attributes.insert("kernel.exit_code".into(), Value::Integer(1));
        })
    }

    /// Something happens to a process of this pid.
    pub(crate) fn of_process(
        mut self,
        intent: &str,
        probe: &str,
        millis: i64,
        who: &str,
        pid: u64,
        edit: impl FnOnce(&mut Observation),
    ) -> Self {
        let process = observe::process(self.node, pid, 9);
        self.observe(intent, probe, millis, who, |it| {
            it.process = Some(process);
            edit(it);
        });
        self
    }

    /// A process of this pid does not find a file, which it may always have done without; no path where it is not known.
    pub(crate) fn misses(self, millis: i64, who: &str, pid: u64, path: &str) -> Self {
        self.looks_in_vain("file-access-failed", (millis, who, pid), (2, path))
    }

    /// A process of this pid does not find a file that earlier ones of its pod found.
    pub(crate) fn misses_gone(self, millis: i64, who: &str, pid: u64, path: &str) -> Self {
        self.looks_in_vain("file-vanished", (millis, who, pid), (2, path))
    }

    /// A process of this pid may not read a file.
    pub(crate) fn may_not_read(self, millis: i64, who: &str, pid: u64, path: &str) -> Self {
        self.looks_in_vain("file-access-failed", (millis, who, pid), (13, path))
    }

    fn looks_in_vain(
        self,
        intent: &str,
        (millis, who, pid): (i64, &str, u64),
        (errno, path): (i64, &str),
    ) -> Self {
        self.of_process(intent, "syscall_failure", millis, who, pid, |it| {
            it.attributes.insert("kernel.errno".into(), Value::Integer(errno));
            it.attributes.insert("kernel.syscall".into(), Value::Text("openat".to_owned()));
            it.attributes.insert("kernel.command".into(), Value::Text("server".to_owned()));
            if !path.is_empty() {
                it.attributes.insert("kernel.path".into(), Value::Text(path.to_owned()));
            }
        })
    }

    /// A process of this pid cannot listen on a port that another one has.
    pub(crate) fn bind_fails(mut self, millis: i64, who: &str, pid: u64, port: u16) -> Self {
        let process = observe::process(self.node, pid, 9);
        self.observe("address-in-use", "syscall_failure", millis, who, |it| {
            it.process = Some(process);
            it.local = Some(Self::endpoint(port));
            it.attributes.insert("kernel.syscall".into(), Value::Text("bind".to_owned()));
            it.attributes.insert("network.protocol".into(), Value::Text("tcp".to_owned()));
            it.attributes.insert("network.local_address".into(), Value::Text("10.0.0.1".to_owned()));
            it.attributes.insert("network.local_port".into(), Value::Integer(port.into()));
        });
        self
    }

    /// Somebody has listened on `endpoint` since `since`, and keeps `out` from it. Who is no container is a process.
    pub(crate) fn holds(
        mut self,
        (since, millis): (i64, i64),
        who: &EntityKey,
        out: &str,
        endpoint: &str,
    ) -> Self {
        let local = EntityKey::new(EntityKind::Endpoint, endpoint);
        self.observe("address-held", "tcp_state", since, out, |it| {
            it.duration = at(millis).since(at(since));
            it.peer = Some(std::mem::replace(&mut it.subject, who.clone()));
            it.process = Some(observe::process("node-a", 777, 5));
            it.local = Some(local.clone());
            it.attributes.insert("kernel.command".into(), Value::Text("spooler".to_owned()));
            it.attributes.insert("kernel.pid".into(), Value::Integer(777));
            it.attributes.insert("network.local_address".into(), Value::Text("10.0.0.1".to_owned()));
            it.attributes.insert("network.local_port".into(), Value::Integer(81));
        });
        self.relate(RelationKind::Listens, who.clone(), local, since);
        self
    }

    /// A call to a port that came to nothing with whoever listens there now.
    pub(crate) fn given_up(mut self, millis: i64, who: &str, port: u16, of: TraceId) -> Self {
        self.observe("request-unfinished", "payload", millis, who, |it| {
            it.peer = Some(Self::endpoint(port));
            it.trace = Some(of);
            it.trace_link = LinkKind::Observed;
        });
        self
    }

    /// Calls to a port that whoever listens there now answered with this status.
    pub(crate) fn answered(mut self, millis: i64, who: &str, port: u16, status: i64, count: u64) -> Self {
        self.observe("request-called", "payload", millis, who, |it| {
            it.count = count;
            it.peer = Some(Self::endpoint(port));
            it.attributes.insert("network.status".into(), Value::Integer(status));
        });
        self
    }

    pub(crate) fn calls(mut self, millis: i64, who: &str, port: u16) -> Self {
        self.relate(RelationKind::Calls, container(who), Self::endpoint(port), millis);
        self
    }

    pub(crate) fn grows(mut self, millis: i64, who: &str) -> Self {
        self.observe("memory-growth", "memory", millis, who, |it| {
            it.process = None;
            it.duration = Micros(5_000_000);
            it.attributes.insert("metric.value".into(), Value::Float(3_250_585.6));
            it.attributes.insert("kernel.limit_bytes".into(), Value::Integer(64 << 20));
            it.attributes.insert("kernel.size_bytes".into(), Value::Integer(40 << 20));
        });
        self
    }

    pub(crate) fn killed(mut self, millis: i64, who: &str) -> Self {
        self.observe("oom-kill", "oom_victim", millis, who, |it| {
            it.attributes.insert("kernel.size_bytes".into(), Value::Integer(67_004_006));
            it.attributes.insert("kernel.pid".into(), Value::Integer(4_127));
            it.attributes.insert("kernel.command".into(), Value::Text(who.to_owned()));
        });
        self
    }

    pub(crate) fn exits(mut self, millis: i64, who: &str) -> Self {
        self.observe("process-killed", "exit", millis, who, |it| {
            it.attributes.insert("kernel.signal".into(), Value::Integer(9));
        });
        self
    }

    pub(crate) fn reset(mut self, millis: i64, who: &str, port: u16) -> Self {
        self.observe("connection-reset", "tcp_reset_recv", millis, who, |it| {
            it.peer = Some(Self::endpoint(port))
        });
        self.relate(RelationKind::Calls, container(who), Self::endpoint(port), millis);
        self
    }

    pub(crate) fn refused(mut self, millis: i64, who: &str, port: u16, count: u64) -> Self {
        self.observe("connection-refused", "tcp_state", millis, who, |it| {
            it.peer = Some(Self::endpoint(port));
            it.count = count;
        });
        self.relate(RelationKind::Calls, container(who), Self::endpoint(port), millis);
        self
    }

    /// Where the agent knows who answered there.
    pub(crate) fn refused_by(mut self, millis: i64, who: &str, peer: &EntityKey, count: u64) -> Self {
        self.observe("connection-refused", "tcp_state", millis, who, |it| {
            it.peer = Some(peer.clone());
            it.count = count;
        });
        self
    }

    pub(crate) fn unanswered(
        mut self,
        millis: i64,
        who: &str,
        port: u16,
        of: TraceId,
        link: LinkKind,
    ) -> Self {
        self.observe("request-unanswered", "payload", millis, who, |it| {
            it.peer = Some(Self::endpoint(port));
            it.trace = Some(of);
            it.trace_link = link;
        });
        self.relate(RelationKind::Calls, container(who), Self::endpoint(port), millis);
        self
    }

    pub(crate) fn fails(mut self, millis: i64, who: &str, count: u64, of: Option<TraceId>) -> Self {
        self.observe("request-served-error", "payload", millis, who, |it| {
            it.count = count;
            it.trace = of;
            it.trace_link = if of.is_some() { LinkKind::Observed } else { LinkKind::None };
            it.attributes.insert("network.status".into(), Value::Integer(500));
        });
        self
    }

    pub(crate) fn executes(mut self, millis: i64, who: &str, command: &str) -> Self {
        self.observe("process-executed", "exec", millis, who, |it| {
            it.attributes.insert("kernel.command".into(), Value::Text(command.to_owned()));
        });
        self
    }

    pub(crate) fn without_probe(mut self, probe: &str) -> Self {
        self.missing_probes.push(probe.to_owned());
        self
    }

    /// A frame of the present node from `since` to `until`, with so many records, and so many of a probe lost.
    pub(crate) fn heard(self, since: i64, until: i64) -> Self {
        self.heard_with(since, until, "payload", 0)
    }

    pub(crate) fn heard_with(mut self, since: i64, until: i64, probe: &str, lost: u64) -> Self {
        let sequence = self.next_frame();
        self.progress(sequence, since, until, probe, lost);
        self
    }

    /// A frame that never arrives.
    pub(crate) fn unheard(mut self) -> Self {
        self.next_frame();
        self
    }

    fn next_frame(&mut self) -> Sequence {
        let frames = self.frames.entry(self.node).or_default();
        *frames += 1;
        Sequence(*frames)
    }

    fn progress(&mut self, sequence: Sequence, since: i64, until: i64, probe: &str, lost: u64) {
        let mut ledger = Ledger { since: at(since), until: at(until), entries: Vec::new() };
        ledger.add(Stage::Kernel, Fate::Carried, "all", "", 100);
        ledger.add(Stage::Kernel, Fate::Lost, probe, "ring-full", lost);
        self.inputs.push(Input::Progress(SourceProgress {
            id: FrameId { source: source(self.node), incarnation: Incarnation(1), sequence }.row(0),
            source: source(self.node),
            node: self.node.to_owned(),
            ledger,
            clock_error: Micros(40),
            missing_probes: self.missing_probes.clone(),
        }));
    }

    pub(crate) fn engine_of(inputs: impl IntoIterator<Item = Input>, now: i64) -> Engine {
        let mut engine = Engine::new(rules(), Limits::default());
        for input in inputs {
            engine.insert(input);
        }
        engine.tick(at(now));
        engine
    }

    pub(crate) fn engine(&self, now: i64) -> Engine {
        Self::engine_of(self.inputs.clone(), now)
    }

    /// The verdicts of the cluster's rule about memory.
    pub(crate) fn verdicts(&self, now: i64) -> Vec<Verdict> {
        self.verdicts_of("container-oom", now)
    }

    pub(crate) fn verdicts_of(&self, rule: &str, now: i64) -> Vec<Verdict> {
        let mut verdicts = self.engine(now).verdicts();
        verdicts.retain(|verdict| verdict.rule == rule);
        verdicts
    }

    pub(crate) fn verdict(&self, now: i64) -> Verdict {
        let mut verdicts = self.verdicts(now);
        assert_eq!(verdicts.len(), 1, "one fault, one verdict: {verdicts:#?}");
        verdicts.remove(0)
    }
}

pub(crate) fn rules() -> Arc<RuleSet> {
    Arc::new(tapio_compiler::compile_builtin().unwrap_or_else(|faults| panic!("{faults}")))
}

/// shop calls payment at port 81, payment calls ledger at 82, and all is well.
pub(crate) fn before() -> Story {
    Story::new()
        .listens(-60_000, "shop", 80)
        .listens(-60_000, "payment", 81)
        .listens(-60_000, "ledger", 82)
        .calls(-50_000, "shop", 81)
        .calls(-50_000, "payment", 82)
        .heard(-120_000, -30_000)
}

/// shop calls payment at port 81, payment calls ledger at 82; `victim` is killed at time 0 and shop fails.
pub(crate) fn classic() -> Story {
    before()
        .grows(-20_000, "payment")
        .grows(-10_000, "payment")
        .killed(0, "payment")
        .exits(1, "payment")
        .reset(2, "shop", 81)
        .unanswered(2, "shop", 81, trace(0x4b), LinkKind::Observed)
        .fails(3, "shop", 1, Some(trace(0x4b)))
        .refused(10, "shop", 81, 412)
        .fails(12, "shop", 397, None)
        .heard(-30_000, 500)
}

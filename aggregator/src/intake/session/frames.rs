//! What becomes of a frame: checked, made durable, told to the engine, counted; or refused, and in the end given up.
//!
//! Nothing here waits: what finds no room is left with [`super::handover`].

use std::sync::Arc;

use bytes::Bytes;
use tapio_correlation::{SourceContext, observe_batch};
use tapio_schemas::{
    ledger::Stage,
    observation::Input,
    units::{Micros, UnixMicros},
};
use tapio_wire::{
    Position,
    frame::{FrameFault, FrameHeader},
    message::refusal,
};

use super::{
    End, Session,
    handover::{Content, Outgoing, ToSpool},
};
use crate::{
    clock::now as unix_now,
    intake::check::Refusal,
    metrics::Outcome,
    pipeline::{
        journal::{Append, Receipt},
        record::{self, Kind},
        spooler::Command,
    },
    source::GivenUp,
};

impl Session {
    /// Checks a frame and hands it on, or refuses it by name.
    pub(super) fn framed(&mut self, header: &FrameHeader, bytes: Bytes, gap: u64) -> Result<(), End> {
        let arrival = unix_now();
        let position = Position::from(header.meta.id);
        let (events, inputs) = match self.checker.open(&bytes, arrival) {
            Ok((header, view)) => {
                let context = SourceContext {
                    node: &self.node,
                    clock_error: Micros(header.meta.clock.error_micros),
                    missing_probes: &self.missing_probes,
                };
                let mut inputs = Vec::new();
                let rules = self.shared.rules.engine();
                let left_out =
                    observe_batch(&view, header.meta.id, &context, rules, &mut |input| inputs.push(input));
                if left_out > 0 {
                    self.shared.metrics.relations_left_out.inc_by(left_out);
                    self.shared.losses.lost(Stage::Engine, "relations", "relations-per-batch", left_out);
                }
                (view.rows(), inputs)
            }
            Err(refusal) => return self.refused(header, gap, &refusal, arrival),
        };
        self.offer(Outgoing {
            head: record::head(Kind::Frame, arrival, &self.node),
            body: bytes,
            content: Content::Frame { position, gap, arrival, inputs, events },
        });
        Ok(())
    }

    pub(super) fn offer(&mut self, outgoing: Outgoing) {
        self.shared.progress.busy();
        if let Some((outgoing, room)) = self.handover.offer(outgoing) {
            self.hand_over(outgoing, room);
        }
    }

    /// Hands a record to the spooler, which has room for it, and what follows from it to the engine.
    pub(super) fn hand_over(&mut self, outgoing: Outgoing, to_spool: ToSpool) {
        let ToSpool { place, room } = to_spool;
        let Outgoing { head, body, content } = outgoing;
        let size = body.len() as u64;
        let tap = &self.shared.tap;
        let live =
            (matches!(content, Content::Frame { .. }) && tap.is_wanted(&self.node)).then(|| body.clone());
        let kept = match content {
            Content::Frame { arrival, .. } => {
                self.shared.tape.keep(&self.node, &self.missing_probes, arrival, &body)
            }
            Content::Announcement | Content::GivenUp { .. } => None,
        };
        let append = |receipt| drop(place.send(Command::Append(Append { head, body, receipt, room })));
        let receipt = |position| Some(Receipt { source: Arc::clone(&self.position), position });
        let (outcome, gap, events) = match content {
            Content::Announcement => {
                append(None);
                self.shared.progress.tick();
                self.shared.progress.idle();
                return;
            }
            Content::GivenUp { position, gap } => {
                let new = self.position.accept(position, || append(receipt(position)));
                (if new { "given-up" } else { "duplicate" }, gap, 0)
            }
            Content::Frame { position, gap, arrival: _, inputs, events } => {
                if self.position.accept(position, || append(receipt(position))) {
                    let now = unix_now();
                    for input in &inputs {
                        if let Input::Progress(progress) = input {
                            self.shared.nodes.heard(progress, now);
                        }
                    }
                    self.handover.think(inputs, kept);
                    if let Some(bytes) = live {
                        tap.offer(position.of_source(self.source), &self.node, bytes, events);
                    }
                    ("accepted", gap, events)
                } else {
                    ("duplicate", 0, 0)
                }
            }
        };
        self.shared.progress.tick();
        self.shared.progress.idle();
        let (metrics, losses) = (&self.shared.metrics, &self.shared.losses);
        metrics.frames.get_or_create(&Outcome { outcome }).inc();
        if outcome == "duplicate" {
            losses.folded(Stage::Intake, "frames", "duplicate", 1);
            return;
        }
        // Counted only now: a frame that is refused comes again, and the gap in front of it too.
        if gap > 0 {
            metrics.sequences_skipped.inc_by(gap);
            // Their events are in the source's own ledger; here only the frames are missed.
            losses.lost(Stage::Intake, "frames", "never-sent", gap);
        }
        if outcome == "accepted" {
            metrics.events.inc_by(u64::from(events));
            metrics.bytes.inc_by(size);
            losses.carried(Stage::Intake, "events", u64::from(events));
        }
    }

    /// Refuses a frame by name and ends the session, so that the source may send something better. When the same frame
    /// comes again it has nothing better: the frame is given up and counted, and what is behind it may pass.
    fn refused(
        &mut self,
        header: &FrameHeader,
        gap: u64,
        refusal: &Refusal,
        arrival: UnixMicros,
    ) -> Result<(), End> {
        let position = Position::from(header.meta.id);
        if !self.position.refuse(position) {
            let metrics = &self.shared.metrics;
            metrics.refusals.add(refusal.name(), 1);
            metrics.frames.get_or_create(&Outcome { outcome: "refused" }).inc();
            tracing::warn!(
                node = self.node,
                frame = %position,
                fault = refusal.name(),
                %refusal,
                advice = refusal.advice(),
                "a frame is refused, and asked for once more"
            );
            let version = matches!(refusal, Refusal::Frame(FrameFault::UnknownBatchVersion(_)));
            let code = if version { refusal::VERSION } else { refusal::PROTOCOL };
            self.session.refuse(
                code,
                &format!("{}: frame {position}: {refusal}; {}", refusal.name(), refusal.advice()),
            );
            return Err(End::Tell);
        }
        tracing::error!(
            node = self.node,
            frame = %position,
            events = header.meta.events,
            fault = refusal.name(),
            advice = refusal.advice(),
            "a frame came twice with the same fault and is given up: its events are lost, and counted"
        );
        let given_up = GivenUp {
            source: self.source,
            incarnation: position.incarnation.0,
            sequence: position.sequence.0,
            events: header.meta.events,
            fault: refusal.name().to_owned(),
        };
        self.offer(Outgoing {
            head: record::head(Kind::GivenUp, arrival, &self.node),
            body: Bytes::from(serde_json::to_vec(&given_up).unwrap_or_default()),
            content: Content::GivenUp { position, gap },
        });
        Ok(())
    }
}

//! The small tasks beside the road: names that follow their file, entities and the own health into the store, the own
//! ledger into the spool.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tapio_daemon::{Health, Progress};
use tapio_schemas::ledger::Stage;
use tapio_store::{
    client::{BlockWriter, DeduplicationToken},
    native::{BlockBuilder, BlockError, EncodedBlock},
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::now,
    context::{Context, Watch, entities::Seen},
    losses::Losses,
    metrics::{StoreMetrics, Table},
    pipeline::{
        journal::Append,
        record::{self, Kind},
        spooler::Command,
    },
    run::RunError,
};

/// How often the identity file is looked at.
const NAMES_INTERVAL: Duration = Duration::from_secs(1);
/// How often entities are stored.
const ENTITIES_INTERVAL: Duration = Duration::from_secs(2);
/// How often the own health is stored.
const HEALTH_INTERVAL: Duration = Duration::from_secs(10);
/// How often the own ledger is written down.
const LOSSES_INTERVAL: Duration = Duration::from_secs(5);

/// Keeps the names as the identity file has them.
pub(crate) async fn watch_names(
    path: PathBuf,
    context: Context,
    seen: Arc<Seen>,
    progress: Progress,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let mut watch = Watch::new(path, context.clone());
    let mut ticks = interval(NAMES_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = None;
    loop {
        // Cancel-safe: a tick that is dropped comes again.
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        // Reading a file of the size of a cluster's pods takes longer than a task may hold its thread.
        let looked = tokio::task::spawn_blocking(move || (watch.look(), watch)).await;
        let Ok((looked, back)) = looked else { return Err(RunError::Panicked { name: "names" }) };
        watch = back;
        match looked {
            Ok(true) => {
                tracing::info!(pods = context.pods().len(), "names were read");
                seen.pods(&context.pods(), now());
                progress.clear();
                said = None;
            }
            Ok(false) => {}
            Err(error) => {
                let text = error.to_string();
                // A file that stays wrong is said once, and stands in the health until it is right.
                if said.as_ref() != Some(&text) {
                    tracing::error!(error = text, "names are kept as they were");
                    progress.fault(text.clone());
                    said = Some(text);
                }
            }
        }
        progress.tick();
        progress.idle();
    }
    progress.finish();
    Ok(())
}

/// Stores entities and relations as they become known. What cannot be stored is offered again at the next turn.
pub(crate) async fn store_entities(
    seen: Arc<Seen>,
    context: Context,
    writer: BlockWriter,
    metrics: StoreMetrics,
    losses: Arc<Losses>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let mut ticks = interval(ENTITIES_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Cancel-safe: a tick that is dropped comes again.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let dropped = seen.take_dropped();
        if dropped > 0 {
            metrics.drops.add("entities-full", dropped);
            losses.lost(Stage::Store, "entities", "entities-full", dropped);
        }
        let due = match seen.due(&context.pods(), now()) {
            Ok(Some(due)) => due,
            Ok(None) => continue,
            Err(error) => {
                tracing::error!(%error, "entities cannot be encoded");
                continue;
            }
        };
        let mut all = true;
        for (table, block) in [("entities", &due.entities), ("relations", &due.relations)] {
            let Some(block) = block else { continue };
            // The tables keep one row per interval, so a repeat does no harm and the token need only be new.
            let Ok(token) = DeduplicationToken::new(format!("{table}-{}", now().0)) else { continue };
            let inserted = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                inserted = writer.insert(table, block, &token) => inserted,
            };
            match inserted {
                Ok(_) => {
                    metrics.rows.get_or_create(&Table { table }).inc_by(block.rows() as u64);
                }
                Err(error) => {
                    tracing::debug!(%error, table, "entities wait for the store");
                    all = false;
                }
            }
        }
        if all {
            seen.stored(&due);
        }
    }
}

/// Who an aggregator is.
#[derive(Clone, Debug)]
pub(crate) struct OwnName {
    pub(crate) tenant: String,
    pub(crate) cluster: String,
    pub(crate) name: String,
}

/// Stores what this process says of its own health, for those who ask elsewhere. What cannot be stored is not: the next
/// word is newer.
pub(crate) async fn store_health(
    own: OwnName,
    health: Health,
    writer: BlockWriter,
    metrics: StoreMetrics,
    stop: CancellationToken,
) -> Result<(), RunError> {
    const TABLE: &str = "tiers";
    let mut ticks = interval(HEALTH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Cancel-safe: a tick that is dropped comes again.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let block = match health_row(&own, &health) {
            Ok(block) => block,
            Err(error) => {
                tracing::error!(%error, "the own health cannot be encoded");
                continue;
            }
        };
        let Ok(token) = DeduplicationToken::new(format!("{TABLE}-{}-{}", own.name, now().0)) else {
            continue;
        };
        let inserted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            inserted = writer.insert(TABLE, &block, &token) => inserted,
        };
        match inserted {
            Ok(_) => drop(metrics.rows.get_or_create(&Table { table: TABLE }).inc()),
            Err(error) => tracing::debug!(%error, "the own health waits for the store"),
        }
    }
}

fn health_row(own: &OwnName, health: &Health) -> Result<EncodedBlock, BlockError> {
    let status = health.status();
    let reasons = serde_json::to_string(&status.reasons).unwrap_or_default();
    let mut block = BlockBuilder::new([
        ("tenant", "LowCardinality(String)"),
        ("cluster", "LowCardinality(String)"),
        ("tier", "LowCardinality(String)"),
        ("name", "String"),
        ("version", "LowCardinality(String)"),
        ("status", "LowCardinality(String)"),
        ("reasons", "String"),
        ("reported_at", "DateTime64(6, 'UTC')"),
    ])?;
    for (name, column) in block.columns() {
        match name {
            "tenant" => column.push_bytes(own.tenant.as_bytes()),
            "cluster" => column.push_bytes(own.cluster.as_bytes()),
            "tier" => column.push_bytes(b"aggregator"),
            "name" => column.push_bytes(own.name.as_bytes()),
            "version" => column.push_bytes(env!("CARGO_PKG_VERSION").as_bytes()),
            "status" => column.push_bytes(status.status.as_str().as_bytes()),
            "reasons" => column.push_bytes(reasons.as_bytes()),
            _ => column.push_unsigned(now().0),
        }
    }
    block.encode()
}

/// Writes the own ledger down, through the spool, so that it is stored exactly once like everything else.
pub(crate) async fn spool_losses(
    losses: Arc<Losses>,
    spooler: mpsc::Sender<Command>,
    name: String,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let mut ticks = interval(LOSSES_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Both branches are cancel-safe: nothing is taken before there is room for it.
        let permit = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            permit = async { ticks.tick().await; spooler.reserve().await } => permit,
        };
        let Ok(permit) = permit else { return Ok(()) };
        if let Some(append) = losses_record(&losses, &name) {
            permit.send(Command::Append(append));
        }
    }
}

/// The own ledger since the last time, as a record; `None` when nothing was counted.
pub(crate) fn losses_record(losses: &Losses, name: &str) -> Option<Append> {
    let now = now();
    let ledger = losses.take(now)?;
    let name = name.rsplit('/').next().unwrap_or(name);
    match serde_json::to_vec(&ledger) {
        Ok(body) => Some(Append {
            head: record::head(Kind::OwnLedger, now, name),
            body: Bytes::from(body),
            receipt: None,
            room: None,
        }),
        Err(error) => {
            tracing::error!(%error, "the own ledger cannot be written");
            losses.put_back(ledger);
            None
        }
    }
}

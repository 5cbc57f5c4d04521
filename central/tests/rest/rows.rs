//! Rows as the aggregator writes them: Native blocks through the production encoder.

use tapio_schemas::{
    event::UnifiedEvent,
    field::{Cell, FIELDS},
    finding::Finding,
    units::UnixMicros,
};
use tapio_store::{
    events::{CONTEXT_COLUMNS, block_builder},
    native::{AnyColumn, BlockBuilder},
};

use crate::world::World;

pub(crate) const TENANT: &str = "default";

/// An event and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct EventRow {
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) event: UnifiedEvent,
}

/// An interval in which an entity is known.
#[derive(Clone, Debug)]
pub(crate) struct EntityRow {
    pub(crate) cluster: String,
    pub(crate) kind: &'static str,
    pub(crate) id: String,
    pub(crate) names: Vec<(&'static str, &'static str)>,
    pub(crate) since: UnixMicros,
    pub(crate) until: UnixMicros,
}

/// A line of a frame's ledger.
#[derive(Clone, Debug)]
pub(crate) struct LedgerRow {
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) until: UnixMicros,
    pub(crate) stage: &'static str,
    pub(crate) fate: &'static str,
    pub(crate) subject: String,
    pub(crate) reason: &'static str,
    pub(crate) count: u64,
}

/// A source that was heard.
#[derive(Clone, Debug)]
pub(crate) struct SourceRow {
    pub(crate) node: &'static str,
    pub(crate) incarnation: u64,
    pub(crate) capability: &'static str,
    pub(crate) last_seen: UnixMicros,
}

/// The same with its cluster and what its agent said of itself.
#[derive(Clone, Debug)]
pub(crate) struct HostRow {
    pub(crate) cluster: &'static str,
    pub(crate) source: SourceRow,
    pub(crate) agent_version: &'static str,
    pub(crate) kernel_release: &'static str,
    pub(crate) architecture: &'static str,
    pub(crate) limits: &'static str,
}

impl World {
    pub(crate) fn insert_events(&mut self, rows: &[EventRow]) {
        let mut block = block_builder().unwrap();
        for EventRow { cluster, node, event } in rows {
            let mut cells = vec![None; FIELDS.len()];
            event.visit(&mut |_layer, id, cell| {
                cells[FIELDS.iter().position(|spec| spec.id == id).unwrap()] = Some(cell);
            });
            let frame = event.id.frame;
            for (index, (name, column)) in block.columns().enumerate() {
                match name {
                    "tenant" => column.push_bytes(TENANT.as_bytes()),
                    "cluster" => column.push_bytes(cluster.as_bytes()),
                    "node" => column.push_bytes(node.as_bytes()),
                    "source_id" => column.push_sixteen(frame.source.0),
                    "incarnation" => column.push_unsigned(frame.incarnation.0),
                    "sequence" => column.push_unsigned(frame.sequence.0),
                    "row" => column.push_unsigned(u64::from(event.id.row)),
                    _ if index < CONTEXT_COLUMNS.len() => column.push_default(),
                    _ => push(column, cells[index - CONTEXT_COLUMNS.len()]),
                }
            }
        }
        self.insert("events", &block.encode().unwrap());
    }

    pub(crate) fn insert_findings(&mut self, findings: &[Finding]) {
        let mut block = BlockBuilder::new([
            ("tenant", "LowCardinality(String)"),
            ("cluster", "LowCardinality(String)"),
            ("id", "String"),
            ("revision", "UInt32"),
            ("incident_id", "String"),
            ("state", "LowCardinality(String)"),
            ("outcome", "LowCardinality(String)"),
            ("severity", "LowCardinality(String)"),
            ("rule", "LowCardinality(String)"),
            ("announced_at", "DateTime64(6, 'UTC')"),
            ("revised_at", "DateTime64(6, 'UTC')"),
            ("title", "String"),
            ("document", "String"),
        ])
        .unwrap();
        for finding in findings {
            let verdict = &finding.verdict;
            for (name, column) in block.columns() {
                match name {
                    "tenant" => column.push_bytes(TENANT.as_bytes()),
                    "cluster" => column.push_bytes(finding.cluster.as_str().as_bytes()),
                    "id" => column.push_bytes(finding.id.as_bytes()),
                    "revision" => column.push_unsigned(u64::from(finding.revision)),
                    "incident_id" => column.push_bytes(finding.incident_id.as_bytes()),
                    "state" => column.push_bytes(finding.state.as_str().as_bytes()),
                    "outcome" => column.push_bytes(verdict.outcome.as_str().as_bytes()),
                    "severity" => column.push_bytes(verdict.severity.as_str().as_bytes()),
                    "rule" => column.push_bytes(verdict.rule.as_bytes()),
                    "announced_at" => column.push_unsigned(finding.announced_at.0),
                    "revised_at" => column.push_unsigned(finding.revised_at.0),
                    "title" => column.push_bytes(finding.title.as_bytes()),
                    _ => column.push_bytes(&serde_json::to_vec(finding).unwrap()),
                }
            }
        }
        self.insert("findings", &block.encode().unwrap());
    }

    /// A finding of a version whose documents nobody here can read.
    pub(crate) fn insert_damaged_finding(&mut self, id: &str, announced_at: UnixMicros) {
        let columns = [
            ("tenant", "LowCardinality(String)"),
            ("id", "String"),
            ("revision", "UInt32"),
            ("announced_at", "DateTime64(6, 'UTC')"),
            ("document", "String"),
        ];
        let mut block = BlockBuilder::new(columns).unwrap();
        for (name, column) in block.columns() {
            match name {
                "tenant" => column.push_bytes(TENANT.as_bytes()),
                "id" => column.push_bytes(id.as_bytes()),
                "revision" => column.push_unsigned(1),
                "announced_at" => column.push_unsigned(announced_at.0),
                _ => column.push_bytes(b"{\"id\": 7}"),
            }
        }
        self.insert("findings", &block.encode().unwrap());
    }

    pub(crate) fn insert_entities(&mut self, rows: &[EntityRow]) {
        let mut block = BlockBuilder::new([
            ("tenant", "LowCardinality(String)"),
            ("cluster", "LowCardinality(String)"),
            ("kind", "LowCardinality(String)"),
            ("id", "String"),
            ("names", "Map(LowCardinality(String), String)"),
            ("since", "DateTime64(6, 'UTC')"),
            ("until", "DateTime64(6, 'UTC')"),
        ])
        .unwrap();
        for row in rows {
            for (name, column) in block.columns() {
                match name {
                    "tenant" => column.push_bytes(TENANT.as_bytes()),
                    "cluster" => column.push_bytes(row.cluster.as_bytes()),
                    "kind" => column.push_bytes(row.kind.as_bytes()),
                    "id" => column.push_bytes(row.id.as_bytes()),
                    "names" => column.push_map(row.names.iter().copied()),
                    "since" => column.push_unsigned(row.since.0),
                    _ => column.push_unsigned(row.until.0),
                }
            }
        }
        self.insert("entities", &block.encode().unwrap());
    }

    pub(crate) fn insert_ledger(&mut self, rows: &[LedgerRow]) {
        let mut block = BlockBuilder::new([
            ("tenant", "LowCardinality(String)"),
            ("cluster", "LowCardinality(String)"),
            ("node", "LowCardinality(String)"),
            ("until", "DateTime64(6, 'UTC')"),
            ("stage", "LowCardinality(String)"),
            ("fate", "LowCardinality(String)"),
            ("subject", "LowCardinality(String)"),
            ("reason", "LowCardinality(String)"),
            ("count", "UInt64"),
        ])
        .unwrap();
        for row in rows {
            for (name, column) in block.columns() {
                match name {
                    "tenant" => column.push_bytes(TENANT.as_bytes()),
                    "cluster" => column.push_bytes(row.cluster.as_bytes()),
                    "node" => column.push_bytes(row.node.as_bytes()),
                    "until" => column.push_unsigned(row.until.0),
                    "stage" => column.push_bytes(row.stage.as_bytes()),
                    "fate" => column.push_bytes(row.fate.as_bytes()),
                    "subject" => column.push_bytes(row.subject.as_bytes()),
                    "reason" => column.push_bytes(row.reason.as_bytes()),
                    _ => column.push_unsigned(row.count),
                }
            }
        }
        self.insert("ledger", &block.encode().unwrap());
    }

    /// Sources of cluster `c1` whose agents say nothing but what works.
    pub(crate) fn insert_sources(&mut self, rows: &[SourceRow]) {
        let hosts = rows.iter().map(|source| HostRow {
            cluster: "c1",
            source: source.clone(),
            agent_version: "",
            kernel_release: "",
            architecture: "",
            limits: "",
        });
        self.insert_hosts(&hosts.collect::<Vec<_>>());
    }

    pub(crate) fn insert_hosts(&mut self, rows: &[HostRow]) {
        let mut block = BlockBuilder::new([
            ("tenant", "LowCardinality(String)"),
            ("cluster", "LowCardinality(String)"),
            ("node", "LowCardinality(String)"),
            ("source_id", "FixedString(16)"),
            ("spiffe_id", "String"),
            ("incarnation", "UInt64"),
            ("capability", "String"),
            ("agent_version", "LowCardinality(String)"),
            ("kernel_release", "LowCardinality(String)"),
            ("architecture", "LowCardinality(String)"),
            ("limits", "String"),
            ("last_seen", "DateTime64(6, 'UTC')"),
        ])
        .unwrap();
        for host in rows {
            let row = &host.source;
            let name = format!("spiffe://tapio.test/node/{}", row.node);
            for (column_name, column) in block.columns() {
                match column_name {
                    "tenant" => column.push_bytes(TENANT.as_bytes()),
                    "cluster" => column.push_bytes(host.cluster.as_bytes()),
                    "node" => column.push_bytes(row.node.as_bytes()),
                    "source_id" => column.push_sixteen(tapio_schemas::ids::SourceId::of_name(&name).0),
                    "spiffe_id" => column.push_bytes(name.as_bytes()),
                    "incarnation" => column.push_unsigned(row.incarnation),
                    "capability" => column.push_bytes(row.capability.as_bytes()),
                    "agent_version" => column.push_bytes(host.agent_version.as_bytes()),
                    "kernel_release" => column.push_bytes(host.kernel_release.as_bytes()),
                    "architecture" => column.push_bytes(host.architecture.as_bytes()),
                    "limits" => column.push_bytes(host.limits.as_bytes()),
                    _ => column.push_unsigned(row.last_seen.0),
                }
            }
        }
        self.insert("sources", &block.encode().unwrap());
    }
}

fn push(column: &mut AnyColumn, cell: Option<Cell<'_>>) {
    match cell {
        None => column.push_default(),
        Some(Cell::Unsigned(value)) => column.push_unsigned(value),
        Some(Cell::Signed(value)) => column.push_signed(value),
        Some(Cell::Float(value)) => column.push_float(value),
        Some(Cell::Sixteen(value)) => column.push_sixteen(value),
        Some(Cell::Symbol(value)) => column.push_bytes(value.as_bytes()),
    }
}

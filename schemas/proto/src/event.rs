//! An owned event as a message.

use std::fmt::Display;

use tapio_schemas::{
    event::{
        Application, Core, Correlation, Entity, Impact, Kernel, Kubernetes, Metric, Network, Raw, Trace,
        UnifiedEvent,
    },
    field::FieldValue,
};

use crate::v1::{self, event::application::Parameter};

/// An event that a node of a cluster shipped, as a message.
#[must_use]
pub fn event(event: UnifiedEvent, cluster: &str, node: &str) -> v1::Event {
    let UnifiedEvent {
        id,
        core,
        trace,
        entity,
        kernel,
        network,
        application,
        kubernetes,
        metric,
        impact,
        correlation,
        raw,
    } = event;
    let Core { time_micros, time_error_micros, kind, probe, severity, count, duration_micros, intent } = core;
    v1::Event {
        id: id.to_string(),
        cluster: cluster.to_owned(),
        node: node.to_owned(),
        time_micros,
        time_error_micros,
        kind: i32::from(kind.code()),
        probe,
        severity: i32::from(severity.code()),
        count,
        duration_micros,
        intent,
        trace: trace.map(Into::into),
        entity: entity.map(Into::into),
        kernel: kernel.map(Into::into),
        network: network.map(Into::into),
        application: application.map(Into::into),
        kubernetes: kubernetes.map(Into::into),
        metric: metric.map(Into::into),
        impact: impact.map(Into::into),
        correlation: correlation.map(Into::into),
        raw: raw.map(Into::into),
    }
}

/// A field's text; an absent one has none.
fn text<T: FieldValue + Display>(value: &T) -> String {
    if *value == T::default() { String::new() } else { value.to_string() }
}

/// The parts of a text that joins them by newlines; an absent one has none.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').filter(move |_| !text.is_empty())
}

impl From<Trace> for v1::event::Trace {
    fn from(layer: Trace) -> Self {
        let Trace { trace_id, span_id, parent_span_id, flags, link } = layer;
        Self {
            trace_id: text(&trace_id),
            span_id: text(&span_id),
            parent_span_id: text(&parent_span_id),
            flags: flags.into(),
            link: link.code().into(),
        }
    }
}

impl From<Entity> for v1::event::Entity {
    fn from(layer: Entity) -> Self {
        let Entity { container_id, pod_uid, peer_container_id, peer_pod_uid, attributes } = layer;
        let attributes = lines(&attributes).map(|line| line.split_once('=').unwrap_or((line, "")));
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { container_id, pod_uid, peer_container_id, peer_pod_uid, attributes }
    }
}

impl From<Kernel> for v1::event::Kernel {
    fn from(layer: Kernel) -> Self {
        let Kernel {
            pid,
            tid,
            parent_pid,
            start_boot_nanos,
            cgroup_id,
            command,
            syscall,
            errno,
            signal,
            exit_code,
            sender_pid,
            path,
            size_bytes,
            limit_bytes,
            uid,
        } = layer;
        Self {
            pid,
            tid,
            parent_pid,
            start_boot_nanos,
            cgroup_id,
            command,
            syscall,
            errno: errno.into(),
            signal: signal.into(),
            exit_code: exit_code.into(),
            sender_pid,
            path,
            size_bytes,
            limit_bytes,
            uid,
        }
    }
}

impl From<Network> for v1::event::Network {
    fn from(layer: Network) -> Self {
        let Network {
            local_address,
            remote_address,
            local_port,
            remote_port,
            protocol,
            direction,
            method,
            route,
            status,
            received_bytes,
            sent_bytes,
            target,
            old_state,
            new_state,
        } = layer;
        Self {
            local_address: text(&local_address),
            remote_address: text(&remote_address),
            local_port: local_port.into(),
            remote_port: remote_port.into(),
            protocol,
            direction,
            method,
            route,
            status: status.into(),
            received_bytes,
            sent_bytes,
            target,
            old_state,
            new_state,
        }
    }
}

impl From<Application> for v1::event::Application {
    fn from(layer: Application) -> Self {
        let Application { logger, message_template, parameters, error_type, stack_trace } = layer;
        let parameters = lines(&parameters).map(|value| Parameter { value: value.to_owned() }).collect();
        Self { logger, message_template, parameters, error_type, stack_trace }
    }
}

impl From<Kubernetes> for v1::event::Kubernetes {
    fn from(layer: Kubernetes) -> Self {
        let Kubernetes { object_kind, namespace, name, uid, reason, message, restarts } = layer;
        Self { object_kind, namespace, name, uid, reason, message, restarts }
    }
}

impl From<Metric> for v1::event::Metric {
    fn from(layer: Metric) -> Self {
        let Metric { name, unit, value } = layer;
        Self { name, unit, value }
    }
}

impl From<Impact> for v1::event::Impact {
    fn from(layer: Impact) -> Self {
        let Impact { business, customer_facing, revenue_impacting, slo_impacting, predicted_outcome } = layer;
        Self { business, customer_facing, revenue_impacting, slo_impacting, predicted_outcome }
    }
}

impl From<Correlation> for v1::event::Correlation {
    fn from(layer: Correlation) -> Self {
        let Correlation { incident_id, pattern, root_cause, recommended_action } = layer;
        Self { incident_id, pattern, root_cause, recommended_action }
    }
}

impl From<Raw> for v1::event::Raw {
    fn from(layer: Raw) -> Self {
        let Raw { format, body } = layer;
        Self { format, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: attributes with a sign in the value, a repeated name and a name alone; parameters that are equal or empty.
    /// Guarantees: attributes come by name, the last value of each; parameters come all, in their order.
    #[test]
    fn joined_texts_come_apart() {
        let attributes = "a=1\nb=x=y\na=2\nc".to_owned();
        let entity = v1::event::Entity::from(Entity { attributes, ..Entity::default() });
        let expected = [("a", "2"), ("b", "x=y"), ("c", "")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(entity.attributes, expected.into());
        let told = |parameters: &str| {
            let parameters = parameters.to_owned();
            let message = v1::event::Application::from(Application { parameters, ..Application::default() });
            message.parameters.into_iter().map(|parameter| parameter.value).collect::<Vec<_>>()
        };
        assert_eq!(told("7\n\n7"), ["7", "", "7"]);
        assert!(told("").is_empty());
    }
}

//! The owned event: what APIs, logs and tests read. Never on the hot path, where a [`crate::batch`] takes its place.
//!
//! The structs are made from the field table ([`crate::field`]). A field's default value means "absent".

use serde::{Deserialize, Serialize};

use crate::{
    address::Address,
    field::{Cell, FieldValue, Layer, event_fields},
    ids::{EventId, SpanId, TraceId},
    intent::{EventKind, LinkKind, Severity},
};

macro_rules! define_layers {
    ($($(#[$ldoc:meta])* $layer:ident $module:ident $struct:ident {
        $($(#[$doc:meta])* $id:literal $name:ident: $type:ty => $clickhouse:literal,)*
    })*) => {
        $(
            $(#[$ldoc])*
            #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
            #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
            #[serde(default, deny_unknown_fields)]
            pub struct $struct {
                $(
                    $(#[$doc])*
                    #[serde(skip_serializing_if = "is_default")]
                    pub $name: $type,
                )*
            }

            impl $struct {
                /// Calls `visit` with the column id and cell of each field that is not absent.
                pub fn visit<'a>(&'a self, visit: &mut dyn FnMut(u16, Cell<'a>)) {
                    $(if !is_default(&self.$name) { visit($id, self.$name.to_cell()); })*
                }

                /// Sets the field of column `id`; returns whether this layer has it.
                pub fn set(&mut self, id: u16, cell: Cell<'_>) -> bool {
                    match id {
                        $($id => self.$name = <$type as FieldValue>::from_cell(cell),)*
                        _ => return false,
                    }
                    true
                }
            }
        )*
    };
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

event_fields!(define_layers);

/// The one event that every layer is expressed in. Only what applies is filled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct UnifiedEvent {
    /// Which event.
    pub id: EventId,
    /// Fields that every event has.
    #[serde(flatten)]
    pub core: Core,
    /// The W3C trace context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Trace>,
    /// Who the event is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<Entity>,
    /// What the kernel said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
    /// Addresses, protocols and requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Log records and errors of applications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<Application>,
    /// Kubernetes objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
    /// A measured value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// What a failure means to the business.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impact: Option<Impact>,
    /// What the engine said about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Correlation>,
    /// The original bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<Raw>,
}

impl UnifiedEvent {
    /// Sets the field of column `id` in `layer`, making the layer if it is absent; returns whether the field exists.
    pub fn set(&mut self, layer: Layer, id: u16, cell: Cell<'_>) -> bool {
        match layer {
            Layer::Core => self.core.set(id, cell),
            Layer::Trace => self.trace.get_or_insert_default().set(id, cell),
            Layer::Entity => self.entity.get_or_insert_default().set(id, cell),
            Layer::Kernel => self.kernel.get_or_insert_default().set(id, cell),
            Layer::Network => self.network.get_or_insert_default().set(id, cell),
            Layer::Application => self.application.get_or_insert_default().set(id, cell),
            Layer::Kubernetes => self.kubernetes.get_or_insert_default().set(id, cell),
            Layer::Metric => self.metric.get_or_insert_default().set(id, cell),
            Layer::Impact => self.impact.get_or_insert_default().set(id, cell),
            Layer::Correlation => self.correlation.get_or_insert_default().set(id, cell),
            Layer::Raw => self.raw.get_or_insert_default().set(id, cell),
        }
    }

    /// Calls `visit` with the layer, column id and cell of each field that is not absent.
    pub fn visit<'a>(&'a self, visit: &mut dyn FnMut(Layer, u16, Cell<'a>)) {
        self.core.visit(&mut |id, cell| visit(Layer::Core, id, cell));
        macro_rules! layers {
            ($($field:ident $layer:ident),*) => {$(
                if let Some(layer) = &self.$field {
                    layer.visit(&mut |id, cell| visit(Layer::$layer, id, cell));
                }
            )*};
        }
        layers!(
            trace Trace, entity Entity, kernel Kernel, network Network, application Application,
            kubernetes Kubernetes, metric Metric, impact Impact, correlation Correlation, raw Raw
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: an event with two layers is visited field by field and set again elsewhere.
    /// Guarantees: the table's conversions lose nothing, and absent layers stay absent.
    #[test]
    fn visiting_and_setting_are_inverse() {
        let event = UnifiedEvent {
            core: Core {
                time_micros: 17,
                kind: EventKind::Network,
                count: 3,
                probe: "tcp-state".into(),
                ..Core::default()
            },
            network: Some(Network { status: 500, route: "/orders/{id}".into(), ..Network::default() }),
            trace: Some(Trace { trace_id: TraceId([7; 16]), link: LinkKind::Observed, ..Trace::default() }),
            ..UnifiedEvent::default()
        };
        let mut copy = UnifiedEvent { id: event.id, ..UnifiedEvent::default() };
        event.visit(&mut |layer, id, cell| assert!(copy.set(layer, id, cell)));
        assert_eq!(copy, event);
        assert!(!copy.set(Layer::Core, 9_999, Cell::Unsigned(1)));
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<UnifiedEvent>(&json).unwrap(), event);
    }
}

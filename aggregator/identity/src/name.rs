//! The names of machines, as SPIFFE URIs. Parsed once; a [`Name`] cannot be wrong.

use std::fmt;
use std::str::FromStr;

use tapio_schemas::ids::{ClusterId, NodeId, SourceId, TenantId};

/// No SPIFFE URI is longer (SPIFFE-ID, section 2.3).
pub const URI_BYTES_MAX: usize = 2048;

const SCHEME: &str = "spiffe://";
const SHAPES: &str = "spiffe://<trust domain>/tenant/<tenant>/cluster/<cluster>/node/<node>, \
    .../cluster/<cluster>/aggregator/<aggregator> or spiffe://<trust domain>/central/<central>";

/// A text that is not the name of a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text as a whole has another shape.
    #[error("{text:?} is not the name of a machine, which is {SHAPES}")]
    Shape {
        /// The text, cut short.
        text: String,
    },
    /// One part of it is not allowed.
    #[error("{part} {text:?} must be {expected}")]
    Part {
        /// Which part.
        part: &'static str,
        /// Its text, cut short.
        text: String,
        /// What it must be.
        expected: &'static str,
    },
}

const LABEL: &str = "1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit";
const SUBDOMAIN: &str = "labels of a-z, 0-9 and '-' joined by dots, at most 253 characters, \
    each starting and ending with a letter or digit";

fn refuse(part: &'static str, text: &str, expected: &'static str) -> NameError {
    NameError::Part { part, text: cut(text), expected }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn is_subdomain(text: &str) -> bool {
    // A DNS subdomain is what a node's name is.
    text.parse::<NodeId>().is_ok()
}

macro_rules! subdomain {
    ($(#[$doc:meta])* $name:ident, $part:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                if is_subdomain(text) { Ok(Self(text.to_owned())) } else { Err(refuse($part, text, SUBDOMAIN)) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

subdomain! {
    /// The part of the world whose certificates one authority vouches for: a DNS subdomain.
    TrustDomain, "trust domain"
}
subdomain! {
    /// The name of one aggregator or one central among its kind: a DNS subdomain.
    Instance, "instance"
}

/// The name of a machine's role in the system, as its certificate states it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// The agent of a node.
    Node {
        /// Who vouches for it.
        trust_domain: TrustDomain,
        /// Whose node it is.
        tenant: TenantId,
        /// The cluster that it belongs to.
        cluster: ClusterId,
        /// The node.
        node: NodeId,
    },
    /// An aggregator of a cluster.
    Aggregator {
        /// Who vouches for it.
        trust_domain: TrustDomain,
        /// Whose cluster it serves.
        tenant: TenantId,
        /// The cluster that it serves.
        cluster: ClusterId,
        /// Which of the cluster's aggregators.
        aggregator: Instance,
    },
    /// A central, which is above tenants and clusters.
    Central {
        /// Who vouches for it.
        trust_domain: TrustDomain,
        /// Which of the centrals.
        central: Instance,
    },
}

/// What a [`Name`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NameKind {
    /// A node's agent.
    Node,
    /// An aggregator.
    Aggregator,
    /// A central.
    Central,
}

impl fmt::Display for NameKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Node => "node",
            Self::Aggregator => "aggregator",
            Self::Central => "central",
        })
    }
}

impl Name {
    /// The name of a node.
    ///
    /// # Errors
    /// With the part that is not allowed.
    pub fn node(trust_domain: &str, tenant: &str, cluster: &str, node: &str) -> Result<Self, NameError> {
        Ok(Self::Node {
            trust_domain: trust_domain.parse()?,
            tenant: tenant_of(tenant)?,
            cluster: cluster_of(cluster)?,
            node: node.parse().map_err(|_invalid| refuse("node", node, SUBDOMAIN))?,
        })
    }

    /// The name of an aggregator.
    ///
    /// # Errors
    /// With the part that is not allowed.
    pub fn aggregator(
        trust_domain: &str,
        tenant: &str,
        cluster: &str,
        aggregator: &str,
    ) -> Result<Self, NameError> {
        Ok(Self::Aggregator {
            trust_domain: trust_domain.parse()?,
            tenant: tenant_of(tenant)?,
            cluster: cluster_of(cluster)?,
            aggregator: instance_of("aggregator", aggregator)?,
        })
    }

    /// The name of a central.
    ///
    /// # Errors
    /// With the part that is not allowed.
    pub fn central(trust_domain: &str, central: &str) -> Result<Self, NameError> {
        Ok(Self::Central { trust_domain: trust_domain.parse()?, central: instance_of("central", central)? })
    }

    /// What it names.
    #[must_use]
    pub const fn kind(&self) -> NameKind {
        match self {
            Self::Node { .. } => NameKind::Node,
            Self::Aggregator { .. } => NameKind::Aggregator,
            Self::Central { .. } => NameKind::Central,
        }
    }

    /// Who vouches for it.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::Node { trust_domain, .. }
            | Self::Aggregator { trust_domain, .. }
            | Self::Central { trust_domain, .. } => trust_domain,
        }
    }

    /// Its tenant; a central has none.
    #[must_use]
    pub const fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::Node { tenant, .. } | Self::Aggregator { tenant, .. } => Some(tenant),
            Self::Central { .. } => None,
        }
    }

    /// Its cluster; a central has none.
    #[must_use]
    pub const fn cluster(&self) -> Option<&ClusterId> {
        match self {
            Self::Node { cluster, .. } | Self::Aggregator { cluster, .. } => Some(cluster),
            Self::Central { .. } => None,
        }
    }

    /// The node's name, if it names one.
    #[must_use]
    pub const fn node_id(&self) -> Option<&NodeId> {
        match self {
            Self::Node { node, .. } => Some(node),
            Self::Aggregator { .. } | Self::Central { .. } => None,
        }
    }

    /// The id of what this machine emits: the first 16 bytes of the SHA-256 of the URI.
    #[must_use]
    pub fn source_id(&self) -> SourceId {
        SourceId::of_name(&self.to_string())
    }

    /// [`Name::source_id`] as bytes.
    #[must_use]
    pub fn source_id_bytes(&self) -> [u8; 16] {
        self.source_id().0
    }
}

fn tenant_of(text: &str) -> Result<TenantId, NameError> {
    text.parse().map_err(|_invalid| refuse("tenant", text, LABEL))
}

fn cluster_of(text: &str) -> Result<ClusterId, NameError> {
    text.parse().map_err(|_invalid| refuse("cluster", text, LABEL))
}

fn instance_of(part: &'static str, text: &str) -> Result<Instance, NameError> {
    text.parse().map_err(|_invalid| refuse(part, text, SUBDOMAIN))
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { trust_domain, tenant, cluster, node } => {
                write!(formatter, "{SCHEME}{trust_domain}/tenant/{tenant}/cluster/{cluster}/node/{node}")
            }
            Self::Aggregator { trust_domain, tenant, cluster, aggregator } => write!(
                formatter,
                "{SCHEME}{trust_domain}/tenant/{tenant}/cluster/{cluster}/aggregator/{aggregator}"
            ),
            Self::Central { trust_domain, central } => {
                write!(formatter, "{SCHEME}{trust_domain}/central/{central}")
            }
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// Accepts exactly what `Display` writes: no other case, no escapes, no trailing slash.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let shape = || NameError::Shape { text: cut(text) };
        if text.len() > URI_BYTES_MAX {
            return Err(shape());
        }
        // Longer than any name has parts, so that surplus ones are seen and refused.
        let mut parts = [""; 8];
        let mut count = 0;
        for (slot, part) in parts.iter_mut().zip(text.strip_prefix(SCHEME).ok_or_else(shape)?.split('/')) {
            *slot = part;
            count += 1;
        }
        match parts.get(..count).unwrap_or_default() {
            [domain, "tenant", tenant, "cluster", cluster, "node", node] => {
                Self::node(domain, tenant, cluster, node)
            }
            [domain, "tenant", tenant, "cluster", cluster, "aggregator", aggregator] => {
                Self::aggregator(domain, tenant, cluster, aggregator)
            }
            [domain, "central", central] => Self::central(domain, central),
            _ => Err(shape()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LABEL: &str = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
    const SUBDOMAIN: &str = "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?){0,4}";

    proptest! {
        /// Scenario: names out of every allowed part.
        /// Guarantees: what is written is read back as the same name, and the source id follows it.
        #[test]
        fn a_name_survives_being_written(
            domain in SUBDOMAIN, tenant in LABEL, cluster in LABEL, last in SUBDOMAIN,
        ) {
            for name in [
                Name::node(&domain, &tenant, &cluster, &last).expect("allowed"),
                Name::aggregator(&domain, &tenant, &cluster, &last).expect("allowed"),
                Name::central(&domain, &last).expect("allowed"),
            ] {
                let read: Name = name.to_string().parse().expect("what was written");
                prop_assert_eq!(&read, &name);
                prop_assert_eq!(read.source_id(), name.source_id());
            }
        }

        /// Scenario: any text at all.
        /// Guarantees: it is refused, or it is exactly what the name that it gives is written as.
        #[test]
        fn only_the_canonical_text_is_a_name(text in "(spiffe://)?[a-z0-9A-Z./%-]{0,60}") {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }

    /// Scenario: texts that are nearly names.
    /// Guarantees: each is refused, and the message says which part is wrong.
    #[test]
    fn near_names_are_refused_with_the_part() {
        let long = format!("spiffe://td/central/{}", "a".repeat(64));
        for (text, says) in [
            ("", "is not the name of a machine"),
            ("spiffe://", "is not the name of a machine"),
            ("https://td/central/c", "is not the name of a machine"),
            ("SPIFFE://td/central/c", "is not the name of a machine"),
            ("spiffe://td/central/c/", "is not the name of a machine"),
            ("spiffe://td/central/c/d/e/f/g/h/i/j", "is not the name of a machine"),
            ("spiffe://td/cluster/c/node/n", "is not the name of a machine"),
            ("spiffe:///central/c", "trust domain"),
            ("spiffe://user@td/central/c", "trust domain"),
            ("spiffe://td:443/central/c", "trust domain"),
            ("spiffe://TD/central/c", "trust domain"),
            ("spiffe://td/central/", "central"),
            ("spiffe://td/central/c%20", "central"),
            ("spiffe://td/tenant/-t/cluster/c/node/n", "tenant"),
            ("spiffe://td/tenant/t/cluster/c.d/node/n", "cluster"),
            ("spiffe://td/tenant/t/cluster/c/node/n..o", "node"),
            ("spiffe://td/tenant/t/cluster/c/aggregator/_", "aggregator"),
            (&long, "central"),
        ] {
            let error = text.parse::<Name>().expect_err(text).to_string();
            assert!(error.contains(says), "{text:?} gave {error:?}");
        }
    }

    /// Scenario: a node whose URI's digest was computed with `sha256sum`.
    /// Guarantees: the source id is those first 16 bytes, on every build, for ever.
    #[test]
    fn the_source_id_is_pinned() {
        let name = Name::node("tapio.test", "default", "demo", "node-1").expect("a name");
        assert_eq!(name.to_string(), "spiffe://tapio.test/tenant/default/cluster/demo/node/node-1");
        assert_eq!(name.source_id().to_string(), "fec45d2b1cafeeafc2aa2a2758a85b77");
    }
}

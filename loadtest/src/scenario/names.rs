//! The pools that names are drawn from.
//!
//! Plausible names only, none of which means anything to the system: no rule may know one.

/// Services of a chain.
pub const SERVICES: [&str; 48] = [
    "shop",
    "payment",
    "ledger",
    "cart",
    "checkout",
    "catalog",
    "pricing",
    "inventory",
    "shipping",
    "returns",
    "billing",
    "invoicing",
    "accounts",
    "profiles",
    "sessions",
    "identity",
    "search",
    "ranking",
    "reviews",
    "ratings",
    "recommender",
    "promotions",
    "coupons",
    "loyalty",
    "notifier",
    "mailer",
    "orders",
    "fulfilment",
    "warehouse",
    "suppliers",
    "taxes",
    "currency",
    "fraud",
    "risk",
    "audit",
    "reports",
    "exports",
    "imports",
    "media",
    "thumbnails",
    "geocoder",
    "routing",
    "tracking",
    "bookings",
    "tickets",
    "quotes",
    "claims",
    "policies",
];

/// What sends the load.
pub const GATEWAYS: [&str; 8] = [
    "gateway",
    "edge-proxy",
    "storefront",
    "frontdoor",
    "web-entry",
    "api-gateway",
    "mobile-bff",
    "ingress-web",
];

/// Namespaces.
pub const NAMESPACES: [&str; 12] = [
    "prod",
    "retail",
    "commerce",
    "platform",
    "team-blue",
    "team-green",
    "core-eu",
    "core-us",
    "sales",
    "logistics",
    "finance",
    "web",
];

/// What a workload's name adds to its service's.
pub const WORKLOAD_SUFFIXES: [&str; 6] = ["", "", "-api", "-server", "-v2", "-svc"];

/// First parts of node names.
pub const NODES: [&str; 6] = ["node", "worker", "ip-10-0", "pool-a", "pool-b", "metal"];

/// Command names of programs that are no part of the workload; the kernel keeps 15 bytes.
pub const COMMANDS: [&str; 16] = [
    "spoolerd",
    "metrics-relay",
    "tunneld",
    "syncd",
    "debug-proxy",
    "jump-host",
    "backup-agent",
    "licensed",
    "cache-warmer",
    "log-shipper",
    "probe-runner",
    "mirror",
    "devserver",
    "replayer",
    "portfwd",
    "watchman",
];

/// What runs on a node and shares its network.
pub const HOST_AGENTS: [&str; 8] = [
    "node-telemetry",
    "log-collector",
    "image-puller",
    "volume-agent",
    "dns-cache",
    "node-backup",
    "gpu-agent",
    "node-proxy",
];

/// What servers of other protocols say first.
pub const GREETINGS: [&str; 6] =
    ["220 relay ready", "SSH-2.0-tunnel_1.4", "+OK ready", "* OK ready", "RFB 003.008", "@RSYNCD: 31.0"];

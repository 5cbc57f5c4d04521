//! Central's configuration: its keys, and what they make of a process, checked as a whole before anything starts.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tapio_daemon::{
    ConfigError, Problems,
    config::{Key, Settings, Tier},
    telemetry, tier,
};
use tapio_schemas::ids::TenantId;

/// What a central can be told.
pub static TIER: Tier = Tier {
    program: "tapio-central",
    about: "Answers over REST from the history of all clusters.",
    keys: &[
        Key::text("central.name", "Its name, for health and logs."),
        Key::text("central.listen", "Where the API listens (HTTPS); port 0 takes any."),
        Key::text("central.tenant", "The tenant whose data it shows; there is one per central.")
            .or("default"),
        Key::path("identity.certificate", "The certificate chain that the API shows, PEM."),
        Key::path("identity.key", "Its private key, PEM."),
        Key::path(
            "store.connection",
            "The file that an aggregator writes beside its state, or one by hand: the store's address and the account \
             that may only read it. Read again when it changes.",
        ),
        Key::text(
            "telemetry.listen",
            "The loopback address of `/metrics` and `/healthz`; without it they are off.",
        )
        .optional(),
        tier::LOG_KEY,
    ],
};

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Config {
    /// This central's name, for health and logs.
    pub name: String,
    /// The tenant whose data it shows; there is one per central.
    pub tenant: String,
    /// Where the API listens (HTTPS).
    pub listen: SocketAddr,
    /// The certificate chain that the API shows, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The store and the account that may only read it.
    pub store: StoreAccess,
    /// Where metrics and health listen; none turns them off.
    pub telemetry_listen: Option<SocketAddr>,
}

/// Where the store's address and reading account stand: the file that an aggregator writes beside its state, or one
/// written by hand for another server. It is read again when the store cannot be reached, because an embedded
/// engine that was restarted may have other ports.
#[derive(Clone, Debug)]
pub struct StoreAccess {
    /// The file.
    pub connection: PathBuf,
}

impl Config {
    /// Reads and checks the file at `path` alone.
    ///
    /// # Errors
    /// When the file cannot be read, or with all of its faults at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::check(Settings::load(&TIER, path)?)?)
    }

    /// Makes a configuration of what the process was told.
    ///
    /// # Errors
    /// With everything that is wrong with it.
    pub fn check(mut settings: Settings) -> Result<Self, Problems> {
        let tenant = settings.parse_text::<TenantId>("central.tenant");
        let listen = settings.read("central.listen", |text| {
            text.parse::<SocketAddr>()
                .map_err(|error| format!("{text:?}: {error}; write ADDRESS:PORT, port 0 for any free one"))
        });
        for key in ["identity.certificate", "identity.key"] {
            if let Some(path) = settings.path(key) {
                settings.require(path.is_file(), key, format_args!("there is no file {}", path.display()));
            }
        }
        let telemetry_listen = settings.read("telemetry.listen", telemetry::loopback);
        settings.read(tier::LOG_KEY.path, telemetry::check_filter);
        let (Some(name), Some(tenant), Some(listen), Some(certificate), Some(key), Some(connection)) = (
            settings.text("central.name"),
            tenant,
            listen,
            settings.path("identity.certificate"),
            settings.path("identity.key"),
            settings.path("store.connection"),
        ) else {
            return settings.finish(None);
        };
        settings.finish(Some(Self {
            name,
            tenant: tenant.as_str().to_owned(),
            listen,
            certificate,
            key,
            store: StoreAccess { connection },
            telemetry_listen,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the keys of a central, and a file that lacks its files.
    /// Guarantees: each key has its own variable and option, a default that it can have, and is used; all faults are
    /// named at once.
    #[test]
    fn every_key_is_sound_and_used() {
        assert_eq!(TIER.faults(), Vec::<String>::new());
        let text = "[central]\nname = \"c\"\nlisten = \"here\"\n[identity]\ncertificate = \"/no/c\"\nkey = \"/no/k\"\n\
                    [store]\nconnection = \"x\"\n[telemetry]\nlisten = \"0.0.0.0:1\"\n";
        let settings = Settings::parse(&TIER, Path::new("c.toml"), text);
        let asked = settings.clone();
        let message = Config::check(settings).unwrap_err().to_string();
        assert_eq!(asked.unasked(), Vec::<&str>::new());
        for part in [
            "has 4 problems",
            "line 3, central.listen",
            "line 5, identity.certificate",
            "line 6, identity.key",
            "line 10, telemetry.listen",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }
}

//! A drawn restart: who, when, how fast it is tried again; and the configuration that the services read.
//!
//! Both have draws of their own, so that what was drawn before for a seed stays what it was. Called by
//! [`super::Scenario::draw`].

use std::path::PathBuf;
use std::time::Duration;

use crate::random::Draw;
use crate::scenario::Pace;

/// Restarts that a run can have: with a back-off that doubles, more than anybody watches.
const RESTARTS_MAX: usize = 12;
/// As the kubelet's: what the back-off grows to.
const BACK_OFF_MAX: Duration = Duration::from_secs(300);

const FOLDERS: [&str; 8] =
    ["conf", "config", "etc", "settings", "conf.d", "app", "run/config", "etc/service"];
const FILES: [&str; 8] = ["config", "service", "application", "settings", "main", "server", "default", "app"];
const OPTIONAL: [&str; 6] = ["override", "local", "secrets", "limits", "features", "regional"];

/// A restart of one service in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartPlan {
    /// Position in [`super::Scenario::chain`].
    pub position: usize,
    /// From the start of the load to the end of the service's first container.
    pub after: Duration,
    /// From there to the start of the next one.
    pub creating: Duration,
    first_back_off: Duration,
    /// The later containers of the pod, in their order; 64 hexadecimal digits each.
    pub container_ids: Vec<String>,
}

impl RestartPlan {
    pub(super) fn draw(seed: u64, pace: Pace) -> Self {
        let mut draw = Draw::labelled(seed, "restart");
        let (after, first_back_off) = match pace {
            Pace::Demo => (draw.between(6_000, 14_000), draw.between(600, 1_500)),
            Pace::Test => (draw.between(2_500, 3_500), draw.between(200, 400)),
        };
        Self {
            position: usize::try_from(draw.between(0, 2)).unwrap_or_default(),
            after: Duration::from_millis(after),
            creating: Duration::from_millis(draw.between(200, 500)),
            first_back_off: Duration::from_millis(first_back_off),
            container_ids: (0..RESTARTS_MAX).map(|_| draw.hex(64)).collect(),
        }
    }

    /// How long after the `restart`-th restart (from 1) failed the next one is made. It doubles, as the kubelet's does;
    /// that one begins with ten seconds, for which no demo has the time.
    #[must_use]
    pub fn back_off(&self, restart: u32) -> Duration {
        let doublings = restart.saturating_sub(1).min(16);
        self.first_back_off.saturating_mul(1 << doublings).min(BACK_OFF_MAX)
    }
}

/// Which files the services read when they start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    folder: String,
    file: String,
    optional: Vec<String>,
}

impl Configuration {
    pub(super) fn draw(seed: u64) -> Self {
        let mut draw = Draw::labelled(seed, "configuration");
        let mut optional = OPTIONAL;
        draw.shuffle(&mut optional);
        let count = usize::try_from(draw.between(1, 4)).unwrap_or_default();
        Self {
            folder: super::pick(&mut draw, &FOLDERS),
            file: super::pick(&mut draw, &FILES),
            optional: optional.iter().take(count).map(|name| (*name).to_owned()).collect(),
        }
    }

    /// The file that a service cannot do without, below the folder of all.
    #[must_use]
    pub fn inside(&self, service: &str) -> PathBuf {
        self.path(service, &self.file)
    }

    /// Files that a service looks for first and that nobody ever makes: a program that starts well misses files too.
    pub fn optional<'a>(&'a self, service: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
        self.optional.iter().map(move |name| self.path(service, &format!("{}.{name}", self.file)))
    }

    fn path(&self, service: &str, file: &str) -> PathBuf {
        [service, &self.folder, &format!("{file}.json")].iter().collect()
    }
}

//! Names: which pod, workload and service a uid stands for, from a file of the shape that the Kubernetes watch pushes.
//!
//! Names only: the file gives no edges, and nothing here decides a verdict. A file that cannot be read leaves the
//! names that were known before in force. Called at the start, by a task that looks whether the file changed, and by
//! whoever names entities for people.

pub(crate) mod entities;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use serde::Deserialize;
use tapio_correlation::Pods;
use tapio_schemas::entity::PodIdentity;
use thiserror::Error;

/// No identity file is larger: 500 bytes a pod for the pods of the largest clusters.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// Pods in one file, as many as Kubernetes is tested with.
const PODS_MAX: usize = 150_000;
/// Bytes of one name: Kubernetes allows 253.
const NAME_BYTES_MAX: usize = 253;
/// Faults that one answer lists.
const FAULTS_MAX: usize = 20;

/// Why an identity file is not taken.
#[derive(Debug, Error)]
pub(crate) enum ContextError {
    /// It cannot be read.
    #[error("cannot read identities {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is too large.
    #[error("identities {} have {bytes} bytes, more than {FILE_BYTES_MAX}: is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is wrong; each fault names the pod's index and key.
    #[error("identities {} are wrong:\n  {}", path.display(), faults.join("\n  "))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        faults: Vec<String>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    version: u32,
    pods: Vec<serde_json::Value>,
}

/// The names, shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context {
    pods: Arc<ArcSwap<Pods>>,
}

impl Context {
    /// The names now.
    pub(crate) fn pods(&self) -> Arc<Pods> {
        self.pods.load_full()
    }

    /// Puts other names in force.
    fn replace(&self, by_uid: HashMap<String, PodIdentity>) {
        let generation = self.pods.load().generation() + 1;
        self.pods.store(Arc::new(Pods::new(by_uid, generation)));
    }
}

/// Looks whether the identity file changed, and takes it if it did.
#[derive(Debug)]
pub(crate) struct Watch {
    path: PathBuf,
    context: Context,
    seen: Option<(SystemTime, u64)>,
}

impl Watch {
    pub(crate) fn new(path: PathBuf, context: Context) -> Self {
        Self { path, context, seen: None }
    }

    /// Takes the file if it is another than last time; returns whether it was.
    ///
    /// A file of the same time and size is taken as the same; whoever replaces it by renaming changes its time.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong; it is then not looked at again until it changes.
    pub(crate) fn look(&mut self) -> Result<bool, ContextError> {
        let looked = self.read();
        if let Err(ContextError::Read { .. }) = looked {
            // It may come back as it was: then it is read, and that it was gone is no fault any more.
            self.seen = None;
        }
        looked
    }

    fn read(&mut self) -> Result<bool, ContextError> {
        let read = |source| ContextError::Read { path: self.path.clone(), source };
        let metadata = fs::metadata(&self.path).map_err(read)?;
        let stamp = (metadata.modified().map_err(read)?, metadata.len());
        if self.seen == Some(stamp) {
            return Ok(false);
        }
        if metadata.len() > FILE_BYTES_MAX {
            return Err(ContextError::TooLarge { path: self.path.clone(), bytes: metadata.len() });
        }
        let bytes = fs::read(&self.path).map_err(read)?;
        self.seen = Some(stamp);
        let text = String::from_utf8(bytes).map_err(|error| ContextError::Wrong {
            path: self.path.clone(),
            faults: vec![format!("the file is no UTF-8 text: {}", error.utf8_error())],
        })?;
        self.context.replace(parse(&self.path, &text)?);
        Ok(true)
    }
}

fn parse(path: &Path, text: &str) -> Result<HashMap<String, PodIdentity>, ContextError> {
    let wrong = |faults| ContextError::Wrong { path: path.to_owned(), faults };
    let raw: RawFile = serde_json::from_str(text).map_err(|error| wrong(vec![error.to_string()]))?;
    if raw.version != 1 {
        return Err(wrong(vec![format!("version is {}, this release reads 1", raw.version)]));
    }
    if raw.pods.len() > PODS_MAX {
        return Err(wrong(vec![format!("pods: {} entries, at most {PODS_MAX} are taken", raw.pods.len())]));
    }
    let mut faults = Vec::new();
    let mut by_uid = HashMap::with_capacity(raw.pods.len());
    for (index, value) in raw.pods.into_iter().enumerate() {
        match serde_json::from_value::<PodIdentity>(value) {
            Ok(pod) => {
                faults.extend(faults_of(&pod).map(|fault| format!("pods[{index}].{fault}")));
                if let Some(other) = by_uid.insert(pod.pod_uid.clone(), pod) {
                    faults.push(format!("pods[{index}].pod_uid: {:?} stands there twice", other.pod_uid));
                }
            }
            Err(error) => faults.push(format!("pods[{index}]: {error}")),
        }
        if faults.len() >= FAULTS_MAX {
            faults.push("more faults are not listed".to_owned());
            break;
        }
    }
    if faults.is_empty() { Ok(by_uid) } else { Err(wrong(faults)) }
}

fn faults_of(pod: &PodIdentity) -> impl Iterator<Item = String> {
    let required = [("pod_uid", &pod.pod_uid), ("namespace", &pod.namespace), ("pod", &pod.pod)];
    let optional = [
        ("workload", &pod.workload),
        ("workload_kind", &pod.workload_kind),
        ("service", &pod.service),
        ("node", &pod.node),
    ];
    let empty = required
        .into_iter()
        .filter(|(_, value)| value.is_empty())
        .map(|(key, _)| format!("{key}: must not be empty"));
    let shaped = required.into_iter().chain(optional).filter_map(|(key, value)| {
        if value.len() > NAME_BYTES_MAX {
            Some(format!("{key}: has {} bytes, at most {NAME_BYTES_MAX} are taken", value.len()))
        } else if value.chars().any(char::is_control) {
            Some(format!("{key}: {value:?} holds control characters"))
        } else {
            None
        }
    });
    empty.chain(shaped).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pods: &str) -> String {
        format!("{{\"version\":1,\"pods\":[{pods}]}}")
    }

    const GOOD: &str = r#"{"pod_uid":"u1","namespace":"shop","pod":"payment-1","service":"payment"}"#;

    /// Scenario: the file appears, changes, and is then broken.
    /// Guarantees: names follow the file; a broken one is refused once, by index and key, and the names stay.
    #[test]
    fn names_follow_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pods.json");
        let context = Context::default();
        let mut watch = Watch::new(path.clone(), context.clone());
        assert!(matches!(watch.look(), Err(ContextError::Read { .. })));
        fs::write(&path, file(GOOD)).unwrap();
        assert!(watch.look().unwrap() && !watch.look().unwrap());
        assert_eq!(context.pods().get("u1").unwrap().display_name(), "payment");

        let bad = r#"{"pod_uid":"","namespace":"n","pod":"p"},{"pod_uid":"u2","names":1}"#;
        fs::write(&path, file(&format!("{GOOD},{bad}"))).unwrap();
        let error = watch.look().unwrap_err().to_string();
        assert!(error.contains("pods[1].pod_uid: must not be empty"), "{error}");
        assert!(error.contains("pods[2]: unknown field `names`"), "{error}");
        assert!(!watch.look().unwrap());
        assert_eq!((context.pods().len(), context.pods().generation()), (1, 1));

        fs::write(&path, b"\xff\xfe of another encoding").unwrap();
        assert!(watch.look().unwrap_err().to_string().contains("no UTF-8"));
        assert!(!watch.look().unwrap());
    }

    /// Scenario: the file is gone for a moment, and comes back unchanged.
    /// Guarantees: it is read again, so that whoever says that it was gone can take that back.
    #[test]
    fn a_file_that_comes_back_unchanged_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let (path, away) = (directory.path().join("pods.json"), directory.path().join("away.json"));
        fs::write(&path, file(GOOD)).unwrap();
        let mut watch = Watch::new(path.clone(), Context::default());
        assert!(watch.look().unwrap());
        fs::rename(&path, &away).unwrap();
        assert!(matches!(watch.look(), Err(ContextError::Read { .. })));
        fs::rename(&away, &path).unwrap();
        assert!(watch.look().unwrap() && !watch.look().unwrap());
    }
}

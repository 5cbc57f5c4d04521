//! The state directory of one run: `<state root>/demo-<seed>`.
//!
//! Owns its creation, the lock that tells an active run from a left folder, and its removal. Called by
//! [`crate::demo::run`].

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

/// An existing, locked folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    was_left: bool,
    /// Held for its lock.
    _lock: File,
}

impl Folder {
    /// Creates the folder anew. What an earlier run with the same seed left is removed, unless that run is active.
    ///
    /// # Errors
    /// A run with the same seed is active, or the root cannot be written.
    pub fn create(root: &Path, seed: u64) -> anyhow::Result<Self> {
        let path = root.join(format!("demo-{seed}"));
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        // The lock is beside the folder, so that the folder can be emptied under it.
        let lock_path = lock_path(&path);
        let lock =
            File::create(&lock_path).with_context(|| format!("cannot create {}", lock_path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "a demo with seed {seed} is running already ({}): wait for it, or use another seed",
                path.display()
            );
        }
        let was_left = path.exists();
        if was_left {
            fs::remove_dir_all(&path).with_context(|| format!("cannot empty {}", path.display()))?;
        }
        // Keys and passwords of the run are in here.
        fs::DirBuilder::new()
            .mode(0o711)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, was_left, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether an earlier run with the same seed had left logs, which are removed now.
    #[must_use]
    pub fn was_left(&self) -> bool {
        self.was_left
    }

    /// Removes the folder, and the root where that is then empty.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))?;
        fs::remove_file(lock_path(&self.path)).context("cannot remove the lock of the state directory")?;
        // Other runs keep the root: it is then not empty.
        drop(self.path.parent().map(fs::remove_dir));
        Ok(())
    }
}

fn lock_path(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

#[cfg(test)]
mod tests {
    use super::Folder;

    /// Scenario: one seed twice at the same time, then again after the first is over and left files.
    /// Guarantees: an active run is not disturbed, a left one is replaced, and the end leaves nothing.
    #[test]
    fn one_run_per_seed_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("tapio");
        let first = Folder::create(&root, 4).unwrap();
        std::fs::write(first.path().join("left"), "x").unwrap();
        let error = Folder::create(&root, 4).unwrap_err().to_string();
        assert!(error.contains("running already"), "{error}");
        let other = Folder::create(&root, 5).unwrap();
        drop(first);
        let again = Folder::create(&root, 4).unwrap();
        assert!(again.was_left() && !other.was_left());
        assert!(!again.path().join("left").exists());
        again.remove().unwrap();
        assert!(root.exists());
        other.remove().unwrap();
        assert!(!root.exists());
    }
}

//! A folder with numbered files in it.

use std::io;
use std::path::PathBuf;

use tempfile::TempDir;

/// Removed with all that is in it, when it is dropped.
pub struct Folder(TempDir);

impl Folder {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn new() -> io::Result<Self> {
        tempfile::tempdir().map(Self)
    }

    /// Where a file is, or would be.
    #[must_use]
    pub fn path(&self, name: &str, number: usize) -> PathBuf {
        self.0.path().join(format!("{name} {number}"))
    }

    /// How many files of this name are there.
    ///
    /// # Errors
    ///
    /// When nobody can tell.
    pub fn count(&self, name: &str) -> io::Result<usize> {
        let mut count = 0;
        for file in self.0.path().read_dir()? {
            let file = file?.file_name();
            count += usize::from(file.to_string_lossy().starts_with(name));
        }
        Ok(count)
    }
}

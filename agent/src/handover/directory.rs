//! The hand-over directory: on a memory file system, and nobody else's.
//!
//! Files are written beside their name and then renamed or linked to it, so a reader sees a whole
//! file or none. Everything goes through the directory's descriptor, checked once: a path that is
//! changed underneath leads nowhere else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kiam_wire::UnixSeconds;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use zeroize::Zeroizing;

use crate::clock::Now;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` of `linux/magic.h`.
const MEMORY_FILE_SYSTEMS: [i64; 2] = [0x0102_1994, 0x8584_58f6];
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;
const PERMISSIONS: u32 = 0o7777;
/// Seconds within which a file that is being written beside its name gets it.
const BESIDE_S_MAX: i64 = 60;

/// A directory that may hold secrets.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    descriptor: OwnedFd,
}

/// Why secrets are not kept there.
#[derive(Debug, thiserror::Error)]
pub enum UnfitDirectory {
    /// Secrets must not reach a disk.
    #[error(
        "--handover-dir {path} is not on a memory file system: mount a tmpfs there, or choose a \
         directory below /run"
    )]
    NotInMemory {
        /// Which.
        path: PathBuf,
    },
    /// Others could read, or put something there.
    #[error(
        "--handover-dir {path} must belong to this user and be writable by nobody else; its mode is \
         {mode:04o}"
    )]
    OpenToOthers {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It cannot be made or opened.
    #[error("--handover-dir {path} cannot be used")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Directory {
    /// Opens the directory, and makes it first, with mode 0700, when only its last part is missing.
    ///
    /// One that others may read, and nobody else could put anything into, is closed to them: that
    /// is how the kubelet makes the directory of a `hostPath` volume, with mode 0755.
    pub fn open(path: &Path) -> Result<Self, UnfitDirectory> {
        let unusable = |errno: rustix::io::Errno| UnfitDirectory::Io {
            path: path.to_owned(),
            source: errno.into(),
        };
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(unusable(errno)),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::empty()).map_err(unusable)?;
        let kind = rustix::fs::fstatfs(&descriptor).map_err(unusable)?.f_type;
        if !MEMORY_FILE_SYSTEMS.contains(&kind) {
            return Err(UnfitDirectory::NotInMemory {
                path: path.to_owned(),
            });
        }
        let status = rustix::fs::fstat(&descriptor).map_err(unusable)?;
        let ours = status.st_uid == rustix::process::geteuid().as_raw();
        if !ours || status.st_mode & OTHERS_WRITE != 0 {
            return Err(UnfitDirectory::OpenToOthers {
                path: path.to_owned(),
                mode: status.st_mode & PERMISSIONS,
            });
        }
        if status.st_mode & OTHERS != 0 {
            rustix::fs::fchmod(&descriptor, Mode::RWXU).map_err(unusable)?;
        }
        let directory = Self {
            path: path.to_owned(),
            descriptor,
        };
        if let Err(error) = directory.sweep(Now::read().wall) {
            tracing::warn!(%error, "the hand-over directory cannot be cleaned up");
        }
        Ok(directory)
    }

    /// Removes what agents that crashed while they wrote have left beside: there are secrets in it.
    fn sweep(&self, now: UnixSeconds) -> io::Result<()> {
        let written_before = now.get().saturating_sub(BESIDE_S_MAX);
        for entry in Dir::read_from(&self.descriptor)? {
            let entry = entry?;
            let Some(name) = entry
                .file_name()
                .to_str()
                .ok()
                .filter(|name| is_beside(name))
            else {
                continue;
            };
            match rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(status) if status.st_mtime <= written_before => self.discard(name),
                // Another agent may be writing it just now.
                Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Its name, for what takes names only.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file, or `None` when there is none.
    ///
    /// # Errors
    /// It is longer than `bytes_max`, no plain file, not ours, or open to others.
    pub fn read(&self, name: &str, bytes_max: u64) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.descriptor, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let status = rustix::fs::fstat(&file)?;
        let refused = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return refused("it is not a plain file");
        }
        if status.st_uid != rustix::process::geteuid().as_raw() {
            return refused("it belongs to another user");
        }
        if status.st_mode & OTHERS != 0 {
            return refused("its mode is not 0600");
        }
        let length = u64::try_from(status.st_size).unwrap_or(u64::MAX);
        if length > bytes_max {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it is too long",
            ));
        }
        // The right capacity at once: growing would leave copies behind that nobody wipes.
        let capacity = usize::try_from(length).unwrap_or(0).saturating_add(1);
        let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
        File::from(file).take(length).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Writes the file in place of an earlier one, mode 0600.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let beside = self.write_beside(name, bytes)?;
        rustix::fs::renameat(&self.descriptor, &beside, &self.descriptor, name)
            .inspect_err(|_| self.discard(&beside))?;
        Ok(())
    }

    /// Writes the file unless there is one: of several that try at once, exactly one succeeds.
    /// `false` when there is one already.
    pub fn create_once(&self, name: &str, bytes: &[u8]) -> io::Result<bool> {
        let beside = self.write_beside(name, bytes)?;
        let linked = rustix::fs::linkat(
            &self.descriptor,
            &beside,
            &self.descriptor,
            name,
            AtFlags::empty(),
        );
        self.discard(&beside);
        match linked {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes the file, if it is there.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.descriptor, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn write_beside(&self, name: &str, bytes: &[u8]) -> io::Result<String> {
        // Two agents, or two writes of one, never share it; one that was left behind by a crash is
        // in nobody's way until it is swept up. `is_beside` knows the form.
        let beside = format!(".{name}.{:016x}", fastrand::u64(..));
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.descriptor, &beside, flags, mode)?;
        let written = File::from(file).write_all(bytes);
        if let Err(error) = written {
            self.discard(&beside);
            return Err(error);
        }
        Ok(beside)
    }

    fn discard(&self, beside: &str) {
        if let Err(error) = self.remove(beside) {
            tracing::debug!(%error, beside, "a temporary file was left in the hand-over directory");
        }
    }
}

/// Whether this is what a file is called until it is whole: `.NAME.` and 16 hexadecimal digits.
fn is_beside(name: &str) -> bool {
    name.strip_prefix('.')
        .and_then(|name| name.rsplit_once('.'))
        .is_some_and(|(name, random)| {
            !name.is_empty()
                && random.len() == 16
                && random.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory in memory that goes with its guard.
    pub(crate) fn in_memory() -> (tempfile::TempDir, Directory) {
        let guard = tempfile::tempdir_in("/dev/shm").unwrap();
        set_mode(guard.path(), 0o700);
        let directory = Directory::open(guard.path()).unwrap();
        (guard, directory)
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_memory_of_our_own_will_do() {
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let refused = Directory::open(disk.path());
        assert!(
            matches!(refused, Err(UnfitDirectory::NotInMemory { .. })),
            "{refused:?}"
        );
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        for open in [0o770, 0o702, 0o1777] {
            set_mode(memory.path(), open);
            let refused = Directory::open(memory.path());
            assert!(
                matches!(refused, Err(UnfitDirectory::OpenToOthers { mode, .. }) if mode == open),
                "{refused:?}"
            );
        }
        // As the kubelet makes it.
        set_mode(memory.path(), 0o755);
        Directory::open(memory.path()).unwrap();
        let mode = memory.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        let nowhere = memory.path().join("a").join("b");
        assert!(matches!(
            Directory::open(&nowhere),
            Err(UnfitDirectory::Io { .. })
        ));
        set_mode(memory.path(), 0o700);
        Directory::open(&memory.path().join("made")).unwrap();
    }

    #[test]
    fn what_is_written_is_read_and_private() {
        let (guard, directory) = in_memory();
        assert!(directory.read("a", 10).unwrap().is_none());
        directory.replace("a", b"one").unwrap();
        directory.replace("a", b"two").unwrap();
        assert_eq!(directory.read("a", 10).unwrap().unwrap().as_slice(), b"two");
        assert!(directory.read("a", 2).is_err());
        let path = guard.path().join("a");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        set_mode(&path, 0o640);
        assert!(directory.read("a", 10).is_err());
        std::os::unix::fs::symlink("/etc/hostname", guard.path().join("link")).unwrap();
        assert!(directory.read("link", 1000).is_err());
        directory.remove("a").unwrap();
        directory.remove("a").unwrap();
        assert_eq!(
            std::fs::read_dir(guard.path()).unwrap().count(),
            1,
            "nothing left beside"
        );
    }

    #[test]
    fn what_a_crash_left_beside_is_swept_up() {
        let (guard, directory) = in_memory();
        let stale = directory.write_beside("snapshot", b"secret").unwrap();
        let fresh = directory.write_beside("token-key", b"secret").unwrap();
        let others = ["snapshot", ".profile", ".a.0123", "..0123456789abcdef"];
        for name in others {
            directory.replace(name, b"kept").unwrap();
        }
        for name in others.into_iter().chain([stale.as_str()]) {
            let file = File::options().write(true).open(guard.path().join(name));
            file.unwrap()
                .set_modified(std::time::SystemTime::UNIX_EPOCH)
                .unwrap();
        }
        let there = |name: &str| guard.path().join(name).exists();
        assert!(there(&stale));
        drop(Directory::open(guard.path()).unwrap());
        assert!(!there(&stale));
        assert!(there(&fresh), "it may be in the middle of being written");
        assert!(others.into_iter().all(there));
        // A minute later nobody can be writing it any more.
        directory
            .sweep(Now::read().wall.after(std::time::Duration::from_secs(61)))
            .unwrap();
        assert!(!there(&fresh));
    }

    #[test]
    fn of_many_exactly_one_creates() {
        let (_guard, directory) = in_memory();
        let created: Vec<bool> = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..16u8)
                .map(|i| {
                    let directory = &directory;
                    scope.spawn(move || directory.create_once("key", &[i; 32]).unwrap())
                })
                .collect();
            tries.into_iter().map(|each| each.join().unwrap()).collect()
        });
        assert_eq!(created.iter().filter(|&&created| created).count(), 1);
        assert_eq!(directory.read("key", 32).unwrap().unwrap().len(), 32);
    }
}

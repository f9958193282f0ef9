//! What the system allows this process: locked memory, open files, shared memory, places for sockets.

use std::path::{Path, PathBuf};

use connect_core::Connector;
use connect_core::transport::local::LocalConfig;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use crate::finding::{Finding, Status};

const AREA: &str = "Limits";

/// What most systems give a process; each peer of the embedded transport takes one.
const FEW_FILES: u64 = 1024;

/// What Docker gives a container unless asked.
const LITTLE_SHM: u64 = 64 << 20;

pub(crate) fn examine() -> Vec<Finding> {
    let mut findings = vec![locked_memory(), open_files(), shared_memory()];
    findings.extend(socket_folders());
    findings
}

fn locked_memory() -> Finding {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    if limit == RLIM_INFINITY {
        return Finding::new(AREA, "locked memory", Status::Ok, "unlimited");
    }
    Finding::new(AREA, "locked memory", Status::Warning, format!("{} KiB", limit >> 10))
        .means("matters with RDMA only: a network card can reach no more than this")
        .remedied_by("`ulimit -l unlimited`, or in a container `--ulimit memlock=-1`")
}

fn open_files() -> Finding {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    if limit >= FEW_FILES {
        return Finding::new(AREA, "open files", Status::Ok, limit.to_string());
    }
    Finding::new(AREA, "open files", Status::Warning, limit.to_string())
        .means("each peer takes one; new peers are refused when they run out")
        .remedied_by("`ulimit -n 4096`")
}

fn shared_memory() -> Finding {
    let size = statvfs("/dev/shm").map(|shm| shm.blocks() * shm.fragment_size()).unwrap_or(0);
    let found = format!("{} MiB", size >> 20);
    if size > LITTLE_SHM {
        return Finding::new(AREA, "/dev/shm", Status::Ok, found);
    }
    Finding::new(AREA, "/dev/shm", Status::Warning, found)
        .means("NIXL's shared-memory transport needs it; the embedded transport does not")
        .remedied_by("in a container: `--shm-size 1g` (Docker gives 64 MB unless asked)")
}

/// The embedded transport listens in the first of these that works.
fn socket_folders() -> Vec<Finding> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let mut findings = Vec::new();
    match &runtime {
        Some(folder) => findings.push(socket_folder("XDG_RUNTIME_DIR", folder)),
        None => findings.push(
            Finding::new(AREA, "XDG_RUNTIME_DIR", Status::Missing, "not set")
                .means("sockets go to the folder for temporary files instead"),
        ),
    }
    findings.push(socket_folder("temporary files", &std::env::temp_dir()));
    findings
}

fn socket_folder(name: &str, folder: &Path) -> Finding {
    let found = folder.display().to_string();
    match Connector::builder().local(LocalConfig::default().socket_dir(folder)).build() {
        Ok(_) => Finding::new(AREA, name, Status::Ok, format!("{found}: a socket can be made there")),
        Err(error) => Finding::new(AREA, name, Status::Warning, found)
            .means(error.to_string())
            .remedied_by("name another folder with `LocalConfig::socket_dir`"),
    }
}

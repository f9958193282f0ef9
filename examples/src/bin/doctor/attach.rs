//! Cross-memory attach: whether one process may copy out of another's memory.
//!
//! A child process tries to read this one. Yama lets a parent read its children, so the other direction is
//! the one that says what unrelated processes may do.

use std::fs;
use std::io::IoSliceMut;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::finding::{Finding, Status};

const AREA: &str = "Cross-memory attach (the embedded transport's fast path between processes of one user)";

/// The child's exit status when the kernel refuses.
const REFUSED: u8 = 3;

/// What is read.
const PAGE: &[u8; 28] = b"bytes for a child to look at";

pub(crate) fn examine() -> Vec<Finding> {
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let scope = yama.as_deref().map(str::trim).ok();
    vec![probe(scope), yama_finding(scope)]
}

fn probe(scope: Option<&str>) -> Finding {
    const NAME: &str = "same user";
    match try_attach() {
        Ok(Some(0)) => Finding::new(AREA, NAME, Status::Ok, "a process read the memory of another"),
        Ok(Some(status)) if status == i32::from(REFUSED) => Finding::new(
            AREA,
            NAME,
            Status::Warning,
            "refused by the kernel",
        )
        .means("bytes go through the socket instead: slower, never wrong")
        .remedied_by(match scope {
            Some("0") | None => {
                "in a container: `--cap-add SYS_PTRACE`, or a seccomp profile that allows process_vm_readv"
            }
            Some(_) => {
                "`sysctl kernel.yama.ptrace_scope=0`, which also lets processes of one user debug each other"
            }
        }),
        Ok(status) => Finding::new(AREA, NAME, Status::Warning, format!("the probe ended with {status:?}")),
        Err(error) => Finding::new(AREA, NAME, Status::Warning, format!("the probe did not run: {error:#}")),
    }
}

fn yama_finding(scope: Option<&str>) -> Finding {
    let (status, found) = match scope {
        None => (Status::Ok, "Yama is not active".to_owned()),
        Some("0") => (Status::Ok, "0: processes of one user may attach".to_owned()),
        Some("1") => (Status::Warning, "1: only parents may attach to their children".to_owned()),
        Some(scope) => (Status::Warning, format!("{scope}: only administrators may attach, if anybody")),
    };
    Finding::new(AREA, "Yama ptrace_scope", status, found)
}

/// The exit status of a child that reads this process.
fn try_attach() -> Result<Option<i32>> {
    let page = PAGE.to_vec();
    let mut child = Command::new(std::env::current_exe()?);
    let child = child.arg("read-parent").arg((page.as_ptr() as u64).to_string());
    let status = child.status().context("starting a child")?;
    drop(page);
    Ok(status.code())
}

/// The child.
pub(crate) fn read_parent(addr: u64) -> ExitCode {
    let mut found = [0; PAGE.len()];
    let remote = RemoteIoVec { base: addr as usize, len: found.len() };
    let parent = Pid::from_raw(std::os::unix::process::parent_id() as i32);
    match process_vm_readv(parent, &mut [IoSliceMut::new(&mut found)], &[remote]) {
        Ok(_) if found == *PAGE => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(_) => ExitCode::from(REFUSED),
    }
}

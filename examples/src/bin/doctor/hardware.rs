//! Cores, memory, GPUs and RDMA network cards.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::finding::{Finding, Status};

const AREA: &str = "Hardware";

pub(crate) fn examine() -> Vec<Finding> {
    vec![cores(), memory(), gpu(), cuda_driver(), rdma()]
}

fn cores() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let status = if cores > 1 { Status::Ok } else { Status::Warning };
    let finding = Finding::new(AREA, "cores", status, cores.to_string());
    if cores > 1 {
        return finding;
    }
    finding.means("both sides of a transfer share one core, so small transfers wait for each other")
}

fn memory() -> Finding {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gib = |field: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(field))?;
        let kib: f64 = line.trim_matches([':', ' ']).split(' ').next()?.parse().ok()?;
        Some(kib / f64::from(1 << 20))
    };
    match (gib("MemTotal"), gib("MemAvailable")) {
        (Some(total), Some(free)) => {
            Finding::new(AREA, "memory", Status::Ok, format!("{total:.1} GiB, {free:.1} GiB available"))
        }
        _ => Finding::new(AREA, "memory", Status::Warning, "/proc/meminfo can't be read"),
    }
}

fn gpu() -> Finding {
    let is_gpu = |name: &str| name.strip_prefix("nvidia").is_some_and(|n| n.parse::<u32>().is_ok());
    let gpus = names("/dev").into_iter().filter(|name| is_gpu(name)).count();
    let driver = fs::read_to_string("/proc/driver/nvidia/version").ok();
    let version = driver.as_deref().and_then(|text| text.lines().next()).unwrap_or("no driver loaded");
    match (gpus, &driver) {
        (0, None) => Finding::new(AREA, "NVIDIA GPU", Status::Missing, "no /dev/nvidia*, no driver")
            .means("tensors live in system memory; everything else works"),
        (0, Some(_)) => {
            Finding::new(AREA, "NVIDIA GPU", Status::Warning, format!("{version}; no /dev/nvidia*"))
                .means("the driver is loaded, but no GPU is visible to this process")
                .remedied_by("in a container: start it with `--gpus all`")
        }
        (count, _) => Finding::new(AREA, "NVIDIA GPU", Status::Ok, format!("{count} visible; {version}"))
            .means("GPU memory needs NIXL; the embedded transport moves system memory only"),
    }
}

/// Asks the loader itself, in a process of its own: it complains about a library it can't preload.
fn cuda_driver() -> Finding {
    const LIBRARY: &str = "libcuda.so.1";
    let answer = Command::new("true").env("LD_PRELOAD", LIBRARY).env("LC_ALL", "C").output();
    match answer {
        Ok(answer) if answer.status.success() && answer.stderr.is_empty() => {
            Finding::new(AREA, LIBRARY, Status::Ok, "can be loaded")
        }
        _ => Finding::new(AREA, LIBRARY, Status::Missing, "the loader does not find it")
            .means("no CUDA in this process")
            .remedied_by("it comes with the NVIDIA driver, not with CUDA wheels"),
    }
}

fn rdma() -> Finding {
    let devices = names("/sys/class/infiniband");
    if devices.is_empty() {
        return Finding::new(AREA, "RDMA devices", Status::Missing, "none in /sys/class/infiniband")
            .means("between hosts NIXL moves bytes over TCP; on one host nothing changes");
    }
    let verbs = names("/dev/infiniband").iter().any(|name| name.starts_with("uverbs"));
    let (status, found) = match verbs {
        true => (Status::Ok, devices.join(", ")),
        false => (Status::Warning, format!("{}, but no /dev/infiniband/uverbs*", devices.join(", "))),
    };
    let finding = Finding::new(AREA, "RDMA devices", status, found);
    if verbs {
        return finding;
    }
    finding.remedied_by("in a container: `--device /dev/infiniband` and an unlimited `--ulimit memlock`")
}

fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

//! [`Machine`]: what a run was measured on. No names, no paths.

use std::fs;
use std::process::Command;
use std::thread;

/// What a reader needs to know of a machine to compare figures with their own.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory in units of 2^30 bytes.
    pub memory_gib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The distribution.
    pub system: String,
    /// The NIXL library's release.
    pub nixl: String,
    /// The commit that was measured.
    pub commit: String,
    /// The day.
    pub date: String,
    /// How many processes wanted to run when the run began, on average over a minute.
    pub load: String,
}

impl Machine {
    /// Looks at this one. What can't be found out is `unknown`.
    pub fn here() -> Self {
        let memory = field("/proc/meminfo", "MemTotal", ':');
        let kibibytes =
            memory.as_deref().and_then(|size| size.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            processor: known(field("/proc/cpuinfo", "model name", ':')),
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kibibytes.unwrap_or_default() >> 20,
            kernel: known(fs::read_to_string("/proc/sys/kernel/osrelease").ok()),
            system: known(field("/etc/os-release", "PRETTY_NAME", '=')),
            nixl: known(nixl()),
            commit: known(said("git", &["describe", "--always", "--dirty"])),
            date: known(said("date", &["-u", "+%F"])),
            load: known(
                fs::read_to_string("/proc/loadavg")
                    .ok()
                    .and_then(|load| Some(load.split_whitespace().next()?.to_owned())),
            ),
        }
    }

    /// In two sentences.
    pub fn sentence(&self) -> String {
        format!(
            "{}, {} cores, {} GiB, {}, Linux {}, NIXL {} with UCX. Commit {}, {}; load at the beginning {}.",
            self.processor,
            self.cores,
            self.memory_gib,
            self.system,
            self.kernel,
            self.nixl,
            self.commit,
            self.date,
            self.load
        )
    }
}

fn known(found: Option<String>) -> String {
    found.map_or_else(|| "unknown".to_owned(), |text| text.trim().trim_matches('"').to_owned())
}

/// The value behind the first of a file's lines that begins with `name`.
fn field(file: &str, name: &str, separator: char) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(separator)?.1.trim().to_owned())
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The release that the wheel's folder names; the library itself does not say.
#[cfg(feature = "nixl")]
fn nixl() -> Option<String> {
    let library = connect_core::transport::nixl::load(None).ok()?;
    let packages = library.parent()?.parent()?;
    let names = fs::read_dir(packages).ok()?.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| {
            let name = name.to_str()?.strip_prefix("nixl_cu1")?.strip_suffix(".dist-info")?.to_owned();
            Some(name.split_once('-')?.1.to_owned())
        })
        .next()
}

#[cfg(not(feature = "nixl"))]
fn nixl() -> Option<String> {
    None
}

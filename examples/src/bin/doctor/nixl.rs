//! NIXL: whether it is built in, which library is found, and what that library has.

#[cfg(feature = "nixl")]
use std::path::{Path, PathBuf};

#[cfg(feature = "nixl")]
use connect_core::transport::TransportError;

use crate::finding::{Finding, Status};

const AREA: &str = "NIXL (for other hosts, GPU memory and Python workers)";

#[cfg(not(feature = "nixl"))]
pub(crate) fn examine() -> Vec<Finding> {
    let finding = Finding::new(AREA, "built in", Status::Missing, "this program was built without it")
        .means("only the embedded transport: processes of this host")
        .remedied_by(
            "`cargo run -p connect-examples --features nixl --bin doctor`, after `cargo xtask setup --nixl`",
        );
    vec![finding]
}

#[cfg(feature = "nixl")]
pub(crate) fn examine() -> Vec<Finding> {
    use connect_core::transport::nixl;

    let mut findings = vec![Finding::new(AREA, "built in", Status::Ok, "yes (cargo feature `nixl`)")];
    let loaded = nixl::load(None);
    findings.extend(nixl::candidates().iter().map(|place| looked_at(place, &loaded)));
    match loaded {
        Err(_) => findings.push(
            Finding::new(AREA, "library", Status::Missing, "none that can be used")
                .means("only the embedded transport: processes of this host")
                .remedied_by(
                    "`pip install nixl-cu13` in a virtual environment, or NIXL_PREFIX for your own build",
                ),
        ),
        Ok(_) => findings.extend([plugins(), ucx()]),
    }
    findings
}

/// What became of one candidate. The last is no path but a name: the loader's own search.
#[cfg(feature = "nixl")]
fn looked_at(place: &Path, loaded: &Result<PathBuf, TransportError>) -> Finding {
    const NAME: &str = "looked at";
    let name = place.display().to_string();
    let found = if place.is_absolute() { name.clone() } else { format!("{name} on the loader's own path") };
    match loaded {
        Ok(library) if library == place => {
            let version = version(place).map_or_else(String::new, |version| format!(" ({version})"));
            Finding::new(AREA, "library", Status::Ok, found + &version)
        }
        Ok(_) if place.is_absolute() && !place.exists() => {
            Finding::new(AREA, NAME, Status::Missing, found + ": not there")
        }
        Ok(_) => Finding::new(AREA, NAME, Status::Ok, found + ": not needed"),
        Err(error) => {
            let (error, prefix) = (error.to_string(), format!("{name}: "));
            let reason = error.lines().find_map(|line| line.trim().strip_prefix(&prefix)).unwrap_or_default();
            Finding::new(AREA, NAME, Status::Missing, found).means(reason)
        }
    }
}

/// The version of the wheel that a library is part of, by the wheel's own record beside it. NIXL's C
/// interface does not tell it.
#[cfg(feature = "nixl")]
fn version(library: &Path) -> Option<String> {
    let site_packages = library.parent()?.parent()?;
    let names = std::fs::read_dir(site_packages).ok()?.flatten();
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .find_map(|name| Some(name.strip_suffix(".dist-info")?.strip_prefix("nixl_cu")?.to_owned()))
        .map(|rest| format!("nixl-cu{}", rest.replacen('-', " ", 1)))
}

#[cfg(feature = "nixl")]
fn plugins() -> Finding {
    match connect_core::transport::nixl::plugins() {
        Ok(plugins) if plugins.iter().any(|plugin| plugin == "UCX") => {
            Finding::new(AREA, "plugins", Status::Ok, plugins.join(", "))
        }
        Ok(plugins) => Finding::new(AREA, "plugins", Status::Warning, plugins.join(", "))
            .means("without UCX, choose another backend with `NixlConfig::backend`")
            .remedied_by("NIXL_PLUGIN_DIR names the folder of plugins"),
        Err(error) => Finding::new(AREA, "plugins", Status::Warning, error.to_string()),
    }
}

/// Builds a connector, which is the only way to know that UCX works here, and says which UCX that loaded.
#[cfg(feature = "nixl")]
fn ucx() -> Finding {
    use connect_core::{Connector, transport::nixl::NixlConfig};

    let started = std::time::Instant::now();
    let connector = match Connector::builder().nixl(NixlConfig::default()).build() {
        Ok(connector) => connector,
        Err(error) => {
            return Finding::new(AREA, "UCX", Status::Warning, "no agent could be made")
                .means(error.to_string())
                .remedied_by("UCX_LOG_LEVEL=info shows what UCX misses");
        }
    };
    let took = started.elapsed();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let library = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.rsplit_once('/').is_some_and(|(_, file)| file.starts_with("libucp")));
    let library = library.unwrap_or("built into its plugin");
    let made = format!("{} agent made in {:.0} ms; {library}", connector.backend(), took.as_secs_f64() * 1e3);
    Finding::new(AREA, "UCX", Status::Ok, made)
}

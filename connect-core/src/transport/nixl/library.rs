//! Finds the NIXL library at run time, and proves that every call into it will succeed in being made.
//!
//! nixl-sys aborts the process when the library is missing or lacks a symbol. So nothing of nixl-sys is
//! called before [`load`] has opened the library itself, by absolute path, and found every symbol. The
//! loader then hands nixl-sys the same library by its name, without `LD_LIBRARY_PATH`.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::transport::TransportError;

/// The C interface of NIXL, which nixl-sys resolves by this name.
const LIBRARY: &str = "libnixl_capi.so";

/// Every function of the C interface that this crate reaches through nixl-sys.
const SYMBOLS: &[&str] = &[
    "nixl_capi_create_configured_agent",
    "nixl_capi_destroy_agent",
    "nixl_capi_get_available_plugins",
    "nixl_capi_get_plugin_params",
    "nixl_capi_create_backend",
    "nixl_capi_destroy_backend",
    "nixl_capi_get_local_md",
    "nixl_capi_get_local_partial_md",
    "nixl_capi_load_remote_md",
    "nixl_capi_invalidate_remote_md",
    "nixl_capi_register_mem",
    "nixl_capi_deregister_mem",
    "nixl_capi_create_xfer_dlist",
    "nixl_capi_destroy_xfer_dlist",
    "nixl_capi_xfer_dlist_add_desc",
    "nixl_capi_xfer_dlist_clear",
    "nixl_capi_create_reg_dlist",
    "nixl_capi_destroy_reg_dlist",
    "nixl_capi_reg_dlist_add_desc",
    "nixl_capi_reg_dlist_clear",
    "nixl_capi_create_xfer_req",
    "nixl_capi_post_xfer_req",
    "nixl_capi_get_xfer_status",
    "nixl_capi_release_xfer_req",
    "nixl_capi_destroy_xfer_req",
    "nixl_capi_create_opt_args",
    "nixl_capi_destroy_opt_args",
    "nixl_capi_opt_args_add_backend",
    "nixl_capi_opt_args_set_notif_msg",
    "nixl_capi_opt_args_set_has_notif",
    "nixl_capi_create_notif_map",
    "nixl_capi_destroy_notif_map",
    "nixl_capi_gen_notif",
    "nixl_capi_get_notifs",
    "nixl_capi_notif_map_size",
    "nixl_capi_notif_map_get_agent_at",
    "nixl_capi_notif_map_get_notifs_size",
    "nixl_capi_notif_map_get_notif",
    "nixl_capi_create_params",
    "nixl_capi_destroy_params",
    "nixl_capi_params_add",
    "nixl_capi_params_create_iterator",
    "nixl_capi_params_iterator_next",
    "nixl_capi_params_destroy_iterator",
    "nixl_capi_mem_list_size",
    "nixl_capi_mem_list_get",
    "nixl_capi_destroy_mem_list",
    "nixl_capi_string_list_size",
    "nixl_capi_string_list_get",
    "nixl_capi_destroy_string_list",
    "nixl_capi_is_stub",
];

/// The library this process uses, once one has been loaded. A process has one for good: nixl-sys binds to
/// the first.
static LOADED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Loads the NIXL library, from `explicit` alone if that is given, else from the first of the documented
/// places that has it. Returns where it was.
///
/// # Errors
/// [`TransportError::Unavailable`], saying where it looked, what was wrong there, and how to get one.
pub fn load(explicit: Option<&Path>) -> Result<PathBuf, TransportError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = &*loaded {
        return match explicit.map(library_in) {
            Some(wanted) if !same_file(&wanted, path) => Err(TransportError::Unavailable(format!(
                "this process already uses {}, and NIXL can be loaded once; {} would need another process",
                path.display(),
                wanted.display()
            ))),
            _ => Ok(path.clone()),
        };
    }
    let candidates = match explicit {
        Some(path) => vec![library_in(path)],
        None => candidates(),
    };
    let mut tried = String::new();
    for candidate in &candidates {
        match open(candidate) {
            Ok(()) => {
                tracing::info!(library = %candidate.display(), "NIXL loaded");
                *loaded = Some(candidate.clone());
                return Ok(candidate.clone());
            }
            Err(reason) => {
                let _ = write!(tried, "\n  {}: {reason}", candidate.display());
            }
        }
    }
    Err(TransportError::Unavailable(format!(
        "no usable NIXL library. Tried:{tried}\nGet one with `pip install nixl-cu13` (or nixl-cu12) in a virtual \
         environment, or point NIXL_PREFIX at an installation"
    )))
}

/// Where [`load`] looks, in its order: `NIXL_PREFIX`, the wheels of a Python environment (`VIRTUAL_ENV`,
/// `CONDA_PREFIX`, then that of the `python3` on the path), the loader's own path.
pub fn candidates() -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Some(prefix) = env::var_os("NIXL_PREFIX").map(PathBuf::from) {
        let arch = env::consts::ARCH;
        let folders = [format!("lib/{arch}-linux-gnu"), "lib64".to_owned(), "lib".to_owned(), String::new()];
        found.extend(folders.iter().map(|folder| prefix.join(folder).join(LIBRARY)).filter(|p| p.exists()));
        if found.is_empty() {
            // Kept, so that the error names it.
            found.push(prefix.join("lib").join(LIBRARY));
        }
    }
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    for environment in environments.chain(python_prefix()) {
        found.extend(wheels_in(&environment));
    }
    found.push(PathBuf::from(LIBRARY));
    found
}

/// The backends that the NIXL library of this process has plugins for, such as `UCX`; loads the library if
/// that has not been done.
///
/// Being listed means that the plugin was found, not that this machine has the hardware for it: that shows
/// when a connector is built with it.
///
/// # Errors
/// As [`load`], and [`TransportError::Engine`] when NIXL can't list them.
pub fn plugins() -> Result<Vec<String>, TransportError> {
    load(None)?;
    let failed =
        |call| move |error: nixl_sys::NixlError| TransportError::Engine { call, status: error.to_string() };
    let config = nixl_sys::AgentConfig { enable_prog_thread: false, ..Default::default() };
    let agent = nixl_sys::Agent::new_configured("plugins", &config).map_err(failed("createAgent"))?;
    let plugins = agent.get_available_plugins().map_err(failed("getAvailPlugins"))?;
    Ok(plugins.iter().filter_map(Result::ok).map(str::to_owned).collect())
}

/// The libraries of NIXL wheels installed under a Python prefix, newest CUDA first.
fn wheels_in(prefix: &Path) -> Vec<PathBuf> {
    let pythons = fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = pythons
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
        .flat_map(|entry| wheel_libraries(&entry.path().join("site-packages")))
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found
}

/// The libraries of NIXL wheels in one `site-packages`. The wheel keeps them in a hidden folder, with the
/// plugins beside them.
fn wheel_libraries(site_packages: &Path) -> Vec<PathBuf> {
    ["cu13", "cu12"]
        .iter()
        .map(|cuda| site_packages.join(format!(".nixl_{cuda}.mesonpy.libs")).join(LIBRARY))
        .filter(|path| path.exists())
        .collect()
}

fn python_prefix() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let python = env::split_paths(&path).map(|folder| folder.join("python3")).find(|file| file.exists())?;
    Some(python.parent()?.parent()?.to_owned())
}

/// A folder stands for the library in it, or for the wheel installed in it.
fn library_in(path: &Path) -> PathBuf {
    if path.is_dir() {
        return wheel_libraries(path).into_iter().next().unwrap_or_else(|| path.join(LIBRARY));
    }
    path.to_owned()
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

/// Opens a library for good, if nixl-sys can use it.
fn open(path: &Path) -> Result<(), String> {
    // SAFETY: opening a library runs its initialisers. That this file is NIXL is what the user says by
    // configuration or by having installed it; there is nothing else to check before it is open.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|e| e.to_string())?;
    let missing: Vec<&str> = SYMBOLS
        .iter()
        .copied()
        .filter(|symbol| {
            // SAFETY: the symbol is looked up and not used.
            unsafe { library.get::<*const ()>(symbol.as_bytes()) }.is_err()
        })
        .collect();
    if !missing.is_empty() {
        let (count, first) = (missing.len(), missing[0]);
        return Err(format!("too old or incomplete: {count} functions are missing, the first is {first}"));
    }
    // Never closed: nixl-sys keeps pointers into it.
    std::mem::forget(library);
    // The one call that is safe in any case. It makes nixl-sys look for the library, by name, once and for
    // all; from here on the name leads to what was just opened.
    if nixl_sys::is_stub() {
        return Err("it was opened, but the loader does not find it by its name".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_a_typed_error_that_says_where_it_looked() {
        let error = open(Path::new("/nowhere/libnixl_capi.so")).unwrap_err();
        assert!(error.contains("/nowhere/libnixl_capi.so"), "{error}");
    }

    #[test]
    fn a_library_without_the_c_interface_is_refused_before_it_is_called() {
        // The C library itself: it opens, and has none of the functions.
        let error = open(Path::new("libc.so.6")).unwrap_err();
        assert!(error.contains("too old or incomplete"), "{error}");
    }
}

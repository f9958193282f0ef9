//! A CUDA toolkit and driver that are none, for machines without a GPU: what `cargo xtask test` builds and runs the
//! feature `cuda` with.
//!
//! `fakecuda/nvcc` compiles kernels to nothing, and `fakecuda/driver.c` is a driver whose device memory is host memory
//! and whose streams do their work as late as CUDA's rules allow. All other functions of CUDA's libraries are there to
//! be linked against, and fail or do nothing when they are called. Nothing of NVIDIA's is downloaded.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::cargo;
use crate::{layout, process};

/// A library to link against: its file, where cudarc declares its functions, and what each of them does.
struct Library {
    name: &'static str,
    version: u32,
    declared: &'static str,
    body: &'static str,
}

/// Of the driver's functions that driver.c does not have: `CUDA_ERROR_NOT_SUPPORTED`.
const NOT_SUPPORTED: &str = "(void) { return 801; }";
/// A handle for those that make one, and success.
const NOTHING: &str = "(void **handle) { if (MAKES(handle)) *handle = (void *)1; return 0; }";

const LIBRARIES: &[Library] = &[
    Library { name: "cuda", version: 1, declared: "driver", body: NOT_SUPPORTED },
    Library { name: "cublas", version: 13, declared: "cublas", body: NOTHING },
    Library { name: "cublasLt", version: 13, declared: "cublaslt", body: NOTHING },
    Library { name: "curand", version: 10, declared: "curand", body: NOTHING },
    Library { name: "nvrtc", version: 13, declared: "nvrtc", body: NOTHING },
    Library { name: "cudart", version: 13, declared: "runtime", body: NOTHING },
];

/// Makes the libraries, and tells a cargo to build and run with them.
pub(crate) fn with(command: &mut Command) -> Result<&mut Command> {
    let libraries = libraries()?;
    let path = joined(&sources(), "PATH")?;
    Ok(command
        .env("PATH", path)
        // Not that anything is there. But build scripts look at this name, and run again when it changes: what was
        // built for a real toolkit is not taken for this one.
        .env("CUDA_HOME", sources())
        .env("CUDA_COMPUTE_CAP", "90")
        .env("LIBRARY_PATH", joined(&libraries, "LIBRARY_PATH")?)
        .env("LD_LIBRARY_PATH", joined(&libraries, "LD_LIBRARY_PATH")?))
}

fn sources() -> PathBuf {
    layout::root().join("xtask/fakecuda")
}

/// A folder before those of a variable.
pub(crate) fn joined(first: &Path, variable: &str) -> Result<OsString> {
    let others = env::var_os(variable).unwrap_or_default();
    let others: Vec<PathBuf> =
        env::split_paths(&others).filter(|path| !path.as_os_str().is_empty()).collect();
    Ok(env::join_paths([first.to_owned()].into_iter().chain(others))?)
}

/// Makes the libraries, and names their folder.
pub(crate) fn libraries() -> Result<PathBuf> {
    let folder = layout::root().join("target/fakecuda");
    fs::create_dir_all(&folder)?;
    let cudarc = source_of("cudarc")?;
    for library in LIBRARIES {
        let declared = cudarc.join("src").join(library.declared).join("sys/mod.rs");
        let declared = fs::read_to_string(&declared).with_context(|| declared.display().to_string())?;
        let mut stubs = "#define MAKES(handle) 0\n".to_owned();
        for function in functions(&declared) {
            let body = match library.body {
                NOTHING if function.contains("Create") => NOTHING.replace("MAKES(handle)", "1"),
                body => body.to_owned(),
            };
            // Weak: what driver.c has comes first.
            stubs += &format!("__attribute__((weak)) int {function}{body}\n");
        }
        let source = folder.join(format!("{}.c", library.name));
        fs::write(&source, stubs)?;
        let file = format!("lib{}.so.{}", library.name, library.version);
        let mut gcc = Command::new("gcc");
        gcc.args(["-w", "-O1", "-shared", "-fPIC", "-pthread"]).arg(format!("-Wl,-soname,{file}"));
        gcc.arg("-o").arg(folder.join(&file)).arg(&source);
        if library.name == "cuda" {
            gcc.arg(sources().join("driver.c"));
        }
        process::output(&mut gcc)?;
        let plain = folder.join(format!("lib{}.so", library.name));
        let _ = fs::remove_file(&plain);
        symlink(&file, plain)?;
    }
    Ok(folder)
}

/// Where cargo unpacked a dependency.
fn source_of(package: &str) -> Result<PathBuf> {
    let metadata =
        process::output(cargo("metadata").args(["--format-version", "1", "--locked", "--all-features"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"].as_array().context("cargo names no packages")?;
    let found =
        packages.iter().find(|one| one["name"] == package).and_then(|one| one["manifest_path"].as_str());
    let manifest = Path::new(found.with_context(|| format!("{package} is no dependency"))?);
    Ok(manifest.parent().context("a manifest without a folder")?.to_owned())
}

/// The functions that a generated binding declares.
fn functions(bindings: &str) -> BTreeSet<&str> {
    let names = bindings.lines().filter_map(|line| {
        let line = line.trim_start();
        let rest = line.strip_prefix("pub unsafe fn ").or_else(|| line.strip_prefix("pub fn "))?;
        rest.split_once('(').map(|(name, _)| name)
    });
    names.filter(|name| name.starts_with("cu") || name.starts_with("nvrtc")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_of_a_binding_are_found_and_nothing_else() {
        let bindings = "pub unsafe fn cuInit(flags: u32) -> CUresult {\n    pub fn nvrtcVersion(a: i32);\npub fn load(a: u8)\nfn cuHidden()";
        assert_eq!(functions(bindings).into_iter().collect::<Vec<_>>(), ["cuInit", "nvrtcVersion"]);
    }
}

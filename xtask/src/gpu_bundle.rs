//! `cargo xtask gpu-bundle`: everything that a machine with a GPU needs to run `gpu/`, which has neither Rust nor a
//! network.
//!
//! Kernels are compiled by NVIDIA's compiler, which set-up fetches for this alone. The suite calls neither cuBLAS nor
//! cuRAND nor NVRTC, but Candle is linked against them, and they are ten times as large as all the rest: the bundle has
//! stand-ins for them that do nothing. CUDA's driver is the machine's own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::cargo;
use crate::fakecuda;
use crate::setup::{self, Group};
use crate::step::Outcome;
use crate::{layout, process};

/// What a packed bundle may have.
const MAX_BYTES: u64 = 60 << 20;
/// Compute capability 9.0: H100 and H200.
const COMPUTE_CAP: &str = "90";
const NIXL: &str = ".nixl_cu13.mesonpy.libs";
/// The libraries that NIXL opens by name, below its own folder.
const OPENED: &[&str] = &["libnixl_capi.so", "plugins/libplugin_UCX.so"];

const DOCUMENT: &str = "docs/gpu.md";
const BEGIN: &str = "<!-- results: written by `cargo xtask gpu-bundle --results` -->\n";
const END: &str = "<!-- end of results -->\n";

/// What to do.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build nothing; write what the runner printed, which is in this file, into docs/gpu.md
    #[arg(long)]
    results: Option<PathBuf>,
}

/// Puts what the runner printed into the document, with the day.
fn record(results: &Path) -> Result<()> {
    let printed = fs::read_to_string(results).with_context(|| results.display().to_string())?;
    ensure!(
        printed.starts_with("Machine: ") && printed.contains(" passed, "),
        "this is no output of the runner"
    );
    let day = process::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let path = layout::root().join(DOCUMENT);
    let old = fs::read_to_string(&path)?;
    let (before, rest) = old.split_once(BEGIN).context("docs/gpu.md has no place for results")?;
    let (_, after) = rest.split_once(END).context("the results have no end")?;
    let section = format!("{}, by `run.sh` of the bundle.\n\n{}\n", day.trim(), printed.trim());
    fs::write(&path, format!("{before}{BEGIN}{section}{END}{after}"))?;
    Ok(())
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(results) = &args.results {
        return record(results);
    }
    setup::ensure(&[Group::Nixl, Group::Cuda])?;
    let toolkit = layout::site().join("nvidia/cu13");
    let stubs = fakecuda::libraries()?;
    let target = layout::root().join("target/gpu");
    let mut build = cargo("build");
    build.args(["--locked", "--release", "--package", "connect-gpu"]).env("CARGO_TARGET_DIR", &target);
    build.env("PATH", fakecuda::joined(&toolkit.join("bin"), "PATH")?).env("CUDA_HOME", &toolkit);
    build.env("CUDA_COMPUTE_CAP", COMPUTE_CAP);
    // What its results are of is known when it is built, not when they are recorded.
    let commit = process::output(Command::new("git").args(["describe", "--always", "--dirty"]))?;
    let nixl = Group::Nixl.pins().first().context("a wheel")?.requirement;
    build.env("CONNECT_BUNDLE", format!("commit {}, {nixl}", commit.trim()));
    // To link against; cudart is the real one, which kernels need.
    let runtime = real_runtime(&toolkit, &target)?;
    build.env("LIBRARY_PATH", std::env::join_paths([&runtime, &stubs])?);
    process::run(&mut build)?;
    let bundle = layout::root().join("target/gpu-bundle/connect-gpu");
    pack(&bundle, &target.join("release/gpu-suite"), &stubs, &runtime)
}

/// A folder with the runtime library under the name that the linker looks for.
fn real_runtime(toolkit: &Path, target: &Path) -> Result<PathBuf> {
    let folder = target.join("cudart");
    fs::create_dir_all(&folder)?;
    for name in ["libcudart.so.13", "libcudart.so"] {
        fs::copy(toolkit.join("lib/libcudart.so.13"), folder.join(name)).context("nvidia-cuda-runtime")?;
    }
    Ok(folder)
}

fn pack(bundle: &Path, suite: &Path, stubs: &Path, runtime: &Path) -> Result<()> {
    if bundle.exists() {
        fs::remove_dir_all(bundle)?;
    }
    copy(suite, &bundle.join("bin/gpu-suite"))?;
    process::output(Command::new("strip").arg(bundle.join("bin/gpu-suite")))?;
    copy(&layout::root().join("gpu/run.sh"), &bundle.join("run.sh"))?;
    for name in ["libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libnvrtc.so.13"] {
        copy(&stubs.join(name), &bundle.join("lib").join(name))?;
    }
    copy(&runtime.join("libcudart.so.13"), &bundle.join("lib/libcudart.so.13"))?;
    for file in nixl_files()? {
        copy(&layout::site().join(&file), &bundle.join("nixl").join(&file))?;
    }
    let archive = bundle.with_extension("tar.xz");
    let (folder, name) = (bundle.parent().context("a folder")?, bundle.file_name().context("a name")?);
    process::run(Command::new("tar").current_dir(folder).arg("-cJf").arg(&archive).arg(name))?;
    let bytes = fs::metadata(&archive)?.len();
    println!("{} ({} MiB). On the machine: tar -xJf it, then ./run.sh", archive.display(), bytes >> 20);
    ensure!(bytes <= MAX_BYTES, "the bundle has {bytes} bytes packed, and may have {MAX_BYTES}");
    Ok(())
}

/// NIXL with UCX, and no other plugin: what is opened by name, UCX's modules, and what all of these are linked against.
/// Paths below site-packages.
fn nixl_files() -> Result<BTreeSet<PathBuf>> {
    let site = fs::canonicalize(layout::site())?;
    let mut roots: Vec<PathBuf> = OPENED.iter().map(|name| site.join(NIXL).join(name)).collect();
    for entry in fs::read_dir(site.join("nixl_cu13.libs/ucx")).context("UCX's modules")? {
        let path = entry?.path();
        // Beside each module lies a text about it for linkers.
        if path.extension().is_none_or(|extension| extension != "la") {
            roots.push(path);
        }
    }
    let mut files = BTreeSet::new();
    for root in roots {
        // A module for hardware that is not here names libraries that are not here; those are the system's.
        let linked = process::output(Command::new("ldd").arg(&root))?;
        let linked = linked.lines().filter_map(|line| line.split_once(" => ")?.1.split(' ').next());
        let linked = linked.map(PathBuf::from).chain([root.clone()]);
        for file in linked {
            // Not resolved: what links to it does so by this name.
            let file = normal(&file);
            if let Ok(inside) = file.strip_prefix(&site) {
                files.insert(inside.to_owned());
            }
        }
    }
    Ok(files)
}

/// The path without `..`, links kept.
fn normal(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    plain
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

/// What can be seen without a GPU: the suite builds, and the runner refuses this machine, as well as the fake driver.
pub(crate) fn check(_: &mut Outcome) -> Result<()> {
    let selection = ["--locked", "--package", "connect-gpu"];
    let mut lint = cargo("clippy");
    lint.args(selection).args(["--all-targets", "--", "-D", "warnings"]);
    process::run(fakecuda::with(&mut lint)?)?;
    let mut build = cargo("build");
    build.args(selection).args(["--message-format", "json-render-diagnostics"]);
    let messages = process::output(fakecuda::with(&mut build)?)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut executables = messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    let suite = executables.next_back().context("cargo built no program")?;

    let folder = layout::root().join("target/gpu-check");
    copy(&suite, &folder.join("bin/gpu-suite"))?;
    copy(&layout::root().join("gpu/run.sh"), &folder.join("run.sh"))?;
    let refuses = |command: &mut Command, why: &str| -> Result<()> {
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || !said.contains("NO GPU: ") || !said.contains(why) {
            bail!(
                "the runner must refuse, naming {why:?}; it ended with {} and said:\n{said}",
                output.status
            );
        }
        let line = said.lines().find(|line| line.contains("NO GPU: ")).unwrap_or_default();
        println!("refused, as it should be: {line}");
        Ok(())
    };
    let mut without = Command::new(folder.join("run.sh"));
    refuses(without.env_remove("LD_LIBRARY_PATH"), "does not start")?;
    refuses(fakecuda::with(&mut Command::new(folder.join("run.sh")))?, "stand-in")
}

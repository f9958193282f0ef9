//! The virtual environment in `.connect/venv`, and the link and the script beside it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{layout, process};

/// The oldest Python the wheels support.
const OLDEST: (u32, u32) = (3, 10);

/// The virtual environment's Python, undisturbed by the caller's own Python settings.
pub(crate) fn python() -> Command {
    clean(Command::new(layout::python()))
}

/// Whether the interpreter is there and the link leads to its packages.
///
/// Only files are looked at, because each command asks this and starting Python costs more than all else. After an
/// update of the system's Python the environment's link to it dangles or its packages have another folder, and then
/// the link below `.connect/site` is not there either.
pub(crate) fn is_usable() -> bool {
    layout::python().is_file() && layout::site().join("pip").is_dir()
}

/// Creates the environment where there is none that works.
pub(crate) fn ensure() -> Result<()> {
    let packages = match packages() {
        Ok(packages) => packages,
        Err(_) => {
            create()?;
            packages().context("the new virtual environment does not work")?
        }
    };
    link(&packages)
}

fn create() -> Result<()> {
    let interpreter = PathBuf::from(std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into()));
    check(&interpreter)?;
    println!("Creating {}", layout::venv().display());
    // What an interrupted or outdated set-up left is no use to the new one.
    process::run(clean(Command::new(&interpreter)).args(["-m", "venv", "--clear"]).arg(layout::venv()))
        .context("Remedy: install Python's venv module (Debian, Ubuntu: apt install python3-venv)")
}

/// Says what is missing before anything is created.
fn check(interpreter: &Path) -> Result<()> {
    let question = "import sys; print(*sys.version_info[:2])\ntry:\n import venv, ensurepip\nexcept ImportError as e: print(e)";
    let answer = process::output(clean(Command::new(interpreter)).args(["-c", question])).context(
        "Python 3.10 or newer is needed to fetch the packages.\n\
         Remedy: install it (Debian, Ubuntu: apt install python3 python3-venv), or name it: PYTHON=<path> cargo xtask setup",
    )?;
    let mut lines = answer.lines();
    let version: Vec<u32> =
        lines.next().unwrap_or_default().split(' ').filter_map(|part| part.parse().ok()).collect();
    match version[..] {
        [major, minor] if (major, minor) < OLDEST => bail!(
            "{} is Python {major}.{minor}; the packages need 3.10 or newer.\n\
             Remedy: name a newer one: PYTHON=<path> cargo xtask setup",
            interpreter.display()
        ),
        [_, _] => {}
        _ => bail!("{} did not say which Python it is: {answer}", interpreter.display()),
    }
    if let Some(missing) = lines.next() {
        bail!(
            "{} can't create virtual environments: {missing}.\n\
             Remedy: Debian, Ubuntu: apt install python3-venv; elsewhere the package that brings ensurepip",
            interpreter.display()
        );
    }
    Ok(())
}

/// The folder where the environment's packages lie, asked of its Python and of pip at once.
fn packages() -> Result<PathBuf> {
    let question = "import pip, sysconfig; print(sysconfig.get_path('purelib'))";
    Ok(PathBuf::from(process::output(python().args(["-c", question]))?.trim_end()))
}

/// Points `.connect/site` at the packages: relative, so that the clone can move; by a rename, so that it is never
/// missing for another process.
fn link(packages: &Path) -> Result<()> {
    let home = layout::home();
    let target = relative(packages, &home).unwrap_or_else(|| packages.to_owned());
    if fs::read_link(layout::site()).is_ok_and(|current| current == target) {
        return Ok(());
    }
    let fresh = home.join(format!(".site.{}", std::process::id()));
    // A leftover of a dead process that had the same id.
    let _ = fs::remove_file(&fresh);
    symlink(&target, &fresh)?;
    fs::rename(&fresh, layout::site())
        .with_context(|| format!("could not place the link {}", layout::site().display()))
}

/// `packages` as seen from `home`; both may be reached through links.
fn relative(packages: &Path, home: &Path) -> Option<PathBuf> {
    let (packages, home) = (packages.canonicalize().ok()?, home.canonicalize().ok()?);
    packages.strip_prefix(home).ok().map(Path::to_owned)
}

/// Writes the script that bindgen takes for clang. It asks it one thing, where the system's headers are, and gcc
/// answers that question in the same words.
pub(crate) fn write_clang() -> Result<()> {
    for (compiler, package) in [("gcc", "gcc"), ("g++", "g++")] {
        process::output(Command::new(compiler).arg("--version")).with_context(|| {
            format!("nixl-sys is compiled with {compiler}. Remedy: Debian, Ubuntu: apt install {package}")
        })?;
    }
    let script = "#!/bin/sh\n# Written by cargo xtask setup: bindgen asks its clang where the headers are; gcc knows.\nexec gcc \"$@\"\n";
    fs::write(layout::clang(), script)?;
    fs::set_permissions(layout::clang(), fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Takes out what would make Python look outside its environment.
fn clean(mut command: Command) -> Command {
    for name in ["PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"] {
        command.env_remove(name);
    }
    command
}

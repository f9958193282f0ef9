//! `cargo xtask setup`: fetches what the registries hold into `.connect/`, and nothing anywhere else.
//!
//! A group of wheels that is complete has a stamp with its pins, written last. So a set-up that was interrupted is
//! repaired by the next one, and one with nothing to do only reads a few files.

mod lock;
mod pins;
mod pip;
mod venv;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::layout;
pub(crate) use pins::Group;

/// Which groups; without any, all.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// NIXL, and libclang to build against it (83 MB)
    #[arg(long)]
    nixl: bool,
    /// libtorch for connect-tch (527 MB)
    #[arg(long)]
    torch: bool,
    /// The Python original, and with it --nixl (2 GB)
    #[arg(long)]
    python: bool,
    /// Older NIXL releases for the compatibility test (180 MB)
    #[arg(long)]
    nixl_versions: bool,
    /// NVIDIA's compiler, which only `gpu-bundle` uses (104 MB)
    #[arg(long)]
    cuda: bool,
    /// All of these but --cuda; the same as no option
    #[arg(long)]
    all: bool,
    /// Only show each wheel, its version and why it is needed
    #[arg(long)]
    list: bool,
}

impl Args {
    fn groups(&self) -> Vec<Group> {
        let wanted = |group: &Group| match group {
            Group::Nixl => self.nixl,
            Group::Torch => self.torch,
            Group::Python => self.python,
            Group::NixlVersions => self.nixl_versions,
            Group::Cuda => self.cuda,
        };
        let named: Vec<Group> = Group::EVERY.into_iter().filter(wanted).collect();
        if self.all || named.is_empty() { Group::ALL.to_vec() } else { named }
    }
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.list {
        list(&args.groups());
        return Ok(());
    }
    let started = Instant::now();
    if !ensure(&args.groups())? {
        println!(
            "Nothing to do ({:.1} s). Everything is in {}",
            started.elapsed().as_secs_f64(),
            layout::home().display()
        );
    }
    Ok(())
}

/// Makes sure that these groups, and what they need, are there and work. True if anything had to be done.
pub(crate) fn ensure(wanted: &[Group]) -> Result<bool> {
    let needed: Vec<Group> = Group::EVERY
        .into_iter()
        .filter(|group| wanted.iter().any(|other| other == group || other.needs().contains(group)))
        .collect();
    if needed.is_empty() || needed.iter().all(|group| is_complete(*group)) {
        return Ok(false);
    }
    fs::create_dir_all(layout::home())
        .with_context(|| format!("could not create {}", layout::home().display()))?;
    let _lock = lock::acquire()?;
    venv::ensure()?;
    let mut did = false;
    for group in needed.into_iter().filter(|group| !is_complete(*group)) {
        did = true;
        let started = Instant::now();
        println!("Setting up {}: {}", group.name(), group.cost());
        install(group)?;
        println!("Set up {} in {:.0} s", group.name(), started.elapsed().as_secs_f64());
    }
    Ok(did)
}

fn is_complete(group: Group) -> bool {
    match group {
        Group::NixlVersions => group.pins().iter().all(|pin| release(pin).1.is_dir()),
        _ => {
            venv::is_usable()
                && (group != Group::Nixl || layout::clang().is_file())
                && layout::site().join(group.evidence()).is_file()
                && fs::read_to_string(stamp(group)).is_ok_and(|text| text == group.stamp())
        }
    }
}

/// Inside the virtual environment, so that deleting or renewing that takes the stamps along.
fn stamp(group: Group) -> PathBuf {
    layout::venv().join(format!(".connect-{}", group.name()))
}

fn install(group: Group) -> Result<()> {
    if group == Group::NixlVersions {
        return install_releases(group);
    }
    if group == Group::Nixl {
        venv::write_clang()?;
    }
    pip::install(group, pip::Mode::Missing)?;
    if let Err(first) = try_out(group) {
        // pip takes a package's records for the package. Where an interruption left records and no files, only a
        // fresh copy helps.
        println!("{} does not work yet, fetching it afresh. {first:#}", group.name());
        pip::install(group, pip::Mode::Afresh)?;
        try_out(group).with_context(|| {
            format!(
                "{} is installed but does not work. Remedy: delete {} and set up again",
                group.name(),
                layout::venv().display()
            )
        })?;
    }
    fs::write(stamp(group), group.stamp()).context("could not write the stamp")
}

fn try_out(group: Group) -> Result<()> {
    let evidence = layout::site().join(group.evidence());
    if !evidence.is_file() {
        bail!("{} is missing", evidence.display());
    }
    crate::process::output(venv::python().args(["-c", group.trial()]))?;
    Ok(())
}

/// Each release in a folder of its own, renamed into place when complete, so that the folder is its own stamp.
fn install_releases(group: Group) -> Result<()> {
    for pin in group.pins() {
        let (version, folder) = release(pin);
        if folder.is_dir() {
            continue;
        }
        let partial = layout::nixl_versions().join(format!(".{version}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        pip::install_into(&partial, pin)?;
        if !partial.join(group.evidence()).is_file() {
            bail!("{} holds no {}", pin.requirement, group.evidence());
        }
        fs::rename(&partial, &folder)?;
    }
    Ok(())
}

fn release(pin: &pins::Pin) -> (&'static str, PathBuf) {
    let version = pin.requirement.rsplit("==").next().unwrap_or(pin.requirement);
    (version, layout::nixl_versions().join(version))
}

fn list(groups: &[Group]) {
    for group in groups {
        let state = if is_complete(*group) { "there" } else { "not there" };
        println!("{} ({state}): {}", group.name(), group.cost());
        for pin in group.pins() {
            println!("  {:<42} {}", pin.requirement, pin.reason);
        }
    }
}

//! Each protection taken out, and the test that must notice: tests that can't fail show nothing.
//!
//! A mutant is the workspace with a few lines changed, in a copy of its own. Its test must fail; that it can't be
//! built, or that the lines are not there any more, fails this check instead.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::mutations::{MUTANTS, Mutant};
use super::mutations_gpu;
use crate::cargo::{cargo, require_peers};
use crate::fakecuda;
use crate::step::Outcome;
use crate::{layout, process};

/// A mutant that hangs is noticed, too; tests take seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// Plays every mutant, or those that `CONNECT_MUTANTS` names a part of, and lists which were not noticed.
pub(super) fn run(outcome: &mut Outcome) -> Result<()> {
    let tree = copy()?;
    let mut missed = Vec::new();
    let wanted = env::var("CONNECT_MUTANTS").unwrap_or_default();
    let chosen = all().filter(|mutant| format!("{}: {}", mutant.of, mutant.what).contains(&wanted));
    let chosen: Vec<&Mutant> = chosen.collect();
    ensure!(!chosen.is_empty(), "no mutant is called {wanted}");
    for (index, mutant) in chosen.iter().enumerate() {
        println!("--- {}/{} {}: {}", index + 1, chosen.len(), mutant.of, mutant.what);
        let noticed = play(mutant, &tree).with_context(|| mutant.what.to_owned())?;
        match noticed {
            Some(how) => {
                outcome.passed += 1;
                println!("    noticed by {}: {how}", mutant.test);
            }
            None => {
                outcome.failed += 1;
                println!("    NOT NOTICED by {}", mutant.test);
                missed.push(mutant.what);
            }
        }
    }
    ensure!(missed.is_empty(), "not noticed: {}", missed.join("; "));
    Ok(())
}

fn all() -> impl Iterator<Item = &'static Mutant> {
    MUTANTS.iter().chain(mutations_gpu::MUTANTS)
}

/// Changes the copy, runs the mutant's test, and changes it back. Says how the test noticed.
fn play(mutant: &Mutant, tree: &Path) -> Result<Option<String>> {
    let mut changed = Vec::new();
    let result = (|| {
        for edit in mutant.edits {
            let path = tree.join(edit.file);
            let old = fs::read_to_string(&path).with_context(|| edit.file.to_owned())?;
            let count = old.matches(edit.find).count();
            ensure!(count == 1, "{} has these lines {count} times, and not once:\n{}", edit.file, edit.find);
            fs::write(&path, old.replace(edit.find, edit.replace))?;
            changed.push((path, old));
        }
        test(mutant, tree)
    })();
    for (path, old) in changed.into_iter().rev() {
        fs::write(path, old)?;
    }
    result
}

fn test(mutant: &Mutant, tree: &Path) -> Result<Option<String>> {
    let mut build = command(tree, mutant)?;
    let built = build.arg("--no-run").output()?;
    ensure!(built.status.success(), "it can't be built:\n{}", String::from_utf8_lossy(&built.stderr));
    let mut run = command(tree, mutant)?;
    run.args(["--", "--exact", mutant.test]).stdout(Stdio::piped()).stderr(Stdio::null());
    let log = tree.with_file_name("output");
    let mut child = run.stdout(fs::File::create(&log)?).process_group(0).spawn()?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > PATIENCE {
            // Cargo's child, the test, is in its group.
            Command::new("kill").args(["-9", "--", &format!("-{}", child.id())]).status()?;
            child.wait()?;
            return Ok(Some("it hung".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let output = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if status.success() {
        ensure!(output.contains("1 passed"), "there is no test {}:\n{output}", mutant.test);
        return Ok(None);
    }
    let failed = output.contains(&format!("test {} ... FAILED", mutant.test));
    if failed { Ok(Some("it failed".to_owned())) } else { Ok(Some("its process died".to_owned())) }
}

fn command(tree: &Path, mutant: &Mutant) -> Result<Command> {
    let mut cargo = cargo("test");
    cargo.current_dir(tree).args(["--locked", "--package", mutant.package]);
    cargo.args(mutant.target).env("CARGO_TARGET_DIR", layout::root().join("target/mutants/target"));
    match mutant.package {
        "connect-candle" | "connect-tch" => {}
        "connect-core" => {
            cargo.args(["--features", "nixl,safetensors"]);
        }
        _ => {
            cargo.args(["--features", "nixl"]);
        }
    }
    if mutant.target == mutations_gpu::TARGET {
        fakecuda::with(&mut cargo)?;
    }
    require_peers(&mut cargo);
    Ok(cargo)
}

/// A copy of everything that git knows, so that a run that is interrupted leaves nothing changed.
fn copy() -> Result<PathBuf> {
    let root = layout::root();
    let tree = root.join("target/mutants/tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let listed = process::output(Command::new("git").current_dir(&root).args(["ls-files", "-z"]))?;
    for file in listed.split('\0').filter(|file| !file.is_empty() && root.join(file).is_file()) {
        let copy = tree.join(file);
        let folder = copy.parent().context("a file is in a folder")?;
        fs::create_dir_all(folder)?;
        fs::copy(root.join(file), copy)?;
    }
    if !root.join(".connect").is_dir() {
        bail!("nothing is set up. Remedy: cargo xtask setup");
    }
    symlink(root.join(".connect"), tree.join(".connect"))?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mutant_still_finds_the_line_it_takes_out() {
        for mutant in all() {
            for edit in mutant.edits {
                let text = fs::read_to_string(layout::root().join(edit.file)).unwrap();
                assert_eq!(
                    text.matches(edit.find).count(),
                    1,
                    "{}, {}: {:?}",
                    mutant.of,
                    edit.file,
                    edit.find
                );
            }
        }
    }
}

//! A project outside the workspace that follows connect-tch's README to the letter: it builds, runs, and prints what
//! the README says.

use std::env;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo::cargo;
use crate::{layout, process};

/// Stands in the README for the clone.
const CLONE: &str = "/path/to/connect";

/// The step.
pub(super) fn check() -> Result<()> {
    let readme = fs::read_to_string(layout::root().join("connect-tch/README.md"))?;
    let project = env::temp_dir().join(format!("connect-fresh-{}", std::process::id()));
    let ran = write(&readme, &project).and_then(|()| run(&project));
    fs::remove_dir_all(&project)?;
    let (printed, promised) = (ran?, promised(&readme)?);
    ensure!(printed.trim() == promised, "the README promises {promised}, the program printed {printed}");
    println!("{}", printed.trim());
    Ok(())
}

/// Writes each block of the README into the file that its first line names.
fn write(readme: &str, project: &std::path::Path) -> Result<()> {
    let clone = layout::root();
    for (file, text) in blocks(readme) {
        let path = project.join(file);
        fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
        fs::write(&path, text.replace(CLONE, &clone.to_string_lossy()))?;
    }
    // A new project takes the newest versions there are; with those of this workspace, what was compiled is reused.
    fs::copy(clone.join("Cargo.lock"), project.join("Cargo.lock"))?;
    Ok(())
}

/// Builds and runs the project, and returns what it printed.
fn run(project: &std::path::Path) -> Result<String> {
    let metadata = process::output(cargo("metadata").args(["--format-version=1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str().context("cargo has a target folder")?;
    let mut command = cargo("run");
    // The manifest is read for its profiles, as in the check of the packages.
    command.current_dir(project).arg("--config").arg(layout::root().join("Cargo.toml"));
    command.args(["--target-dir", target]);
    command.env("LIBTORCH", layout::site().join("torch")).env_remove("LD_LIBRARY_PATH");
    process::output(&mut command)
}

/// The blocks of code that name a file in their first line, which is a comment, and their text.
fn blocks(readme: &str) -> impl Iterator<Item = (&str, &str)> {
    let inside = readme.split("```").skip(1).step_by(2);
    inside.filter_map(|block| {
        let (_language, text) = block.split_once('\n')?;
        let first = text.lines().next()?;
        let file = first.strip_prefix("// ").or_else(|| first.strip_prefix("# "))?;
        Some((file, text))
    })
}

/// What the README says that the program prints.
fn promised(readme: &str) -> Result<&str> {
    let said = readme.split_once("`cargo run` prints `").and_then(|(_, rest)| rest.split_once('`'));
    said.map(|(promised, _)| promised).context("the README says what `cargo run` prints")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_names_a_whole_project_and_what_it_prints() {
        let readme = include_str!("../../../connect-tch/README.md");
        let files: Vec<_> = blocks(readme).map(|(file, _)| file).collect();
        assert_eq!(files, ["Cargo.toml", "build.rs", "src/main.rs"]);
        assert!(readme.contains(CLONE) && promised(readme).unwrap().starts_with("[2, 3]"));
    }
}

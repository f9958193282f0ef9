//! The list of tests in docs/reliability.md: each promise, and the tests that carry its name.
//!
//! A test carries the names of the promises it holds the code to: `p1_p2_memory_...`. The list is made from the
//! sources, and `cargo xtask test` fails when it is stale, so that the document claims no test that is gone.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::layout;

const DOCUMENT: &str = "docs/reliability.md";
const BEGIN: &str = "<!-- tests: written by `cargo xtask promises` -->\n";
const END: &str = "<!-- end of tests -->\n";
/// Where tests are.
const FOLDERS: [&str; 6] = ["connect-core", "connect-candle", "connect-tch", "examples", "tests", "fuzz"];

/// Writes the list into the document.
pub(crate) fn write() -> Result<()> {
    let (path, old, new) = documents()?;
    if old != new {
        fs::write(&path, new)?;
    }
    println!("{DOCUMENT} lists the tests that there are");
    Ok(())
}

/// Fails if the document's list is not what the sources say.
pub(crate) fn check() -> Result<()> {
    let (_, old, new) = documents()?;
    ensure!(old == new, "the list of tests in {DOCUMENT} is stale. Remedy: cargo xtask promises");
    Ok(())
}

fn documents() -> Result<(PathBuf, String, String)> {
    let path = layout::root().join(DOCUMENT);
    let old = fs::read_to_string(&path).with_context(|| format!("could not read {DOCUMENT}"))?;
    let mut tests = BTreeMap::new();
    for folder in FOLDERS {
        collect(&layout::root().join(folder), &mut tests)?;
    }
    let (before, rest) = old.split_once(BEGIN).with_context(|| format!("{DOCUMENT} has no list of tests"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("the list in {DOCUMENT} has no end"))?;
    let new = format!("{before}{BEGIN}{}{END}{after}", render(&tests)?);
    Ok((path, old, new))
}

/// Promise to file to tests.
type Tests = BTreeMap<u8, BTreeMap<String, Vec<String>>>;

fn collect(folder: &Path, tests: &mut Tests) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    let mut entries = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, tests)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(layout::root())?.display().to_string();
            for function in functions(&fs::read_to_string(&path)?) {
                for promise in promises(function) {
                    let files = tests.entry(promise).or_default();
                    files.entry(name.clone()).or_default().push(function.to_owned());
                }
            }
        }
    }
    Ok(())
}

fn functions(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| {
        let line = line.trim_start();
        let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
        rest.split(['(', '<']).next()
    })
}

/// The promises in a test's name.
fn promises(function: &str) -> Vec<u8> {
    let number = |word: &str| match word.strip_prefix('p')?.as_bytes() {
        [digit @ b'1'..=b'8'] => Some(digit - b'0'),
        _ => None,
    };
    function.split('_').map_while(number).collect()
}

fn render(tests: &Tests) -> Result<String> {
    let mut text = String::new();
    for (promise, files) in tests {
        let count: usize = files.values().map(Vec::len).sum();
        writeln!(text, "\n**P{promise}**, {count} tests:\n")?;
        for (file, functions) in files {
            let names: Vec<String> = functions.iter().map(|name| format!("`{name}`")).collect();
            writeln!(text, "- [{file}](../{file}): {}", names.join(", "))?;
        }
    }
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_s_name_says_which_promises_it_is_about() {
        assert_eq!(promises("p1_p2_memory_comes_back"), [1, 2]);
        assert_eq!(promises("p8_x"), [8]);
        assert!(promises("p9_x").is_empty() && promises("pair").is_empty() && promises("p50_of").is_empty());
        let source = "    async fn p2_a() {\nfn p1_b<T>(t: T) {\n// fn p3_c()\nlet fn_p4 = 1;";
        assert_eq!(functions(source).collect::<Vec<_>>(), ["p2_a", "p1_b"]);
    }
}

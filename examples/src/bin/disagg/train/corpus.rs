//! What the small model learns to write: this repository's pages, and the comments of its code.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Text to learn from, and text that is kept back to see what was learnt.
pub(crate) struct Corpus {
    pub(crate) learnt: Vec<u32>,
    pub(crate) held_out: Vec<u32>,
}

/// Of every so many paragraphs one is kept back.
const HELD_OUT: usize = 20;

/// Pages that are tables of figures.
const TABLES: [&str; 2] = ["performance.md", "matrix.md"];

impl Corpus {
    /// Of the workspace around this package.
    pub(crate) fn of_the_workspace() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
        let mut text = String::new();
        for folder in [root.to_owned(), root.join("docs"), root.join("examples")] {
            for page in files(&folder, "md", false)? {
                if !TABLES.iter().any(|table| page.ends_with(table)) {
                    text.push_str(&fs::read_to_string(page)?);
                    text.push_str("\n\n");
                }
            }
        }
        for member in
            ["connect-core", "connect-candle", "connect-tch", "examples", "tests", "benches", "xtask"]
        {
            for file in files(&root.join(member).join("src"), "rs", true)? {
                text.push_str(&comments(&fs::read_to_string(file)?));
            }
        }
        Ok(Self::of_text(&text))
    }

    pub(crate) fn of_text(text: &str) -> Self {
        let mut corpus = Self { learnt: Vec::new(), held_out: Vec::new() };
        let paragraphs = text.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty());
        for (number, paragraph) in paragraphs.enumerate() {
            let part = if number % HELD_OUT == 7 { &mut corpus.held_out } else { &mut corpus.learnt };
            part.extend(paragraph.bytes().chain(*b"\n\n").map(u32::from));
        }
        corpus
    }
}

/// The files with such an ending, in the order of their paths.
fn files(folder: &Path, ending: &str, deep: bool) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if deep && path.is_dir() {
            all.extend(files(&path, ending, deep)?);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// The doc comments of a source file, without their marks and examples.
fn comments(source: &str) -> String {
    let mut text = String::new();
    let mut is_example = false;
    for line in source.lines().map(str::trim) {
        let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        match comment.map(|comment| comment.strip_prefix(' ').unwrap_or(comment)) {
            Some(comment) if comment.starts_with("```") => is_example = !is_example,
            Some(comment) if !is_example => {
                text.push_str(comment);
                text.push('\n');
            }
            Some(_) => {}
            None if text.ends_with("\n\n") || text.is_empty() => {}
            None => text.push('\n'),
        }
    }
    text.push('\n');
    text
}

//! The comparison runs without NIXL and Python, too, and writes what it says it writes.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

#[test]
fn a_quick_run_over_the_embedded_transport_writes_a_page_with_plots_and_records() -> Result<()> {
    let out = tempfile::tempdir()?;
    let run = Command::new(env!("CARGO_BIN_EXE_side-by-side"))
        .args(["--quick", "--local-only", "--out"])
        .arg(out.path())
        .output()?;
    ensure!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));

    let page = fs::read_to_string(out.path().join("performance.md"))?;
    ensure!(page.contains("| connect, local "), "no row of this library in\n{page}");
    let plots = page.lines().filter_map(|line| line.strip_prefix("![")?.strip_suffix(")")?.split_once("]("));
    let mut count = 0;
    for (_, plot) in plots {
        ensure!(fs::read_to_string(out.path().join(plot))?.ends_with("</svg>\n"), "{plot} is cut off");
        count += 1;
    }
    ensure!(count > 10, "only {count} plots");

    let records = fs::read_to_string(out.path().join("performance/records.jsonl"))?;
    for record in records.lines() {
        serde_json::from_str::<serde_json::Value>(record)?;
    }
    ensure!(records.lines().count() > 20, "only {} records", records.lines().count());
    Ok(())
}

#[test]
fn an_unknown_sweep_is_named_with_those_there_are() -> Result<()> {
    let run = Command::new(env!("CARGO_BIN_EXE_side-by-side")).args(["--only", "smal"]).output()?;
    let error = String::from_utf8_lossy(&run.stderr);
    ensure!(
        !run.status.success() && error.contains("there is no sweep smal; there are small, size"),
        "{error}"
    );
    Ok(())
}

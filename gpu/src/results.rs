//! What was found, as rows of a table.

use std::time::Instant;

use anyhow::{Result, bail};

/// The rows so far.
pub(crate) struct Results {
    failed: usize,
    passed: usize,
}

impl Results {
    pub(crate) fn new(machine: &str) -> Self {
        let built = option_env!("CONNECT_BUNDLE").unwrap_or("no bundle");
        println!("Machine: {machine}. connect {}, {built}\n", env!("CARGO_PKG_VERSION"));
        println!("| check | result | what was seen |\n|---|---|---|");
        Self { failed: 0, passed: 0 }
    }

    /// Runs one check, and shows its row.
    pub(crate) fn check(&mut self, name: &str, check: impl FnOnce() -> Result<String>) {
        let began = Instant::now();
        match check() {
            Ok(seen) => {
                self.passed += 1;
                println!("| {name} | passed | {seen} ({:.1} s) |", began.elapsed().as_secs_f64());
            }
            Err(error) => {
                self.failed += 1;
                println!("| {name} | FAILED | {} |", format!("{error:#}").replace(['|', '\n'], " "));
            }
        }
    }

    /// What could not be looked at here, and why.
    pub(crate) fn not_run(&mut self, name: &str, why: &str) {
        println!("| {name} | not run | {why} |");
    }

    /// # Errors
    /// Something failed, or nothing was run.
    pub(crate) fn finish(self) -> Result<()> {
        println!("\n{} passed, {} failed", self.passed, self.failed);
        if self.failed > 0 || self.passed == 0 {
            bail!("{} checks failed, {} passed", self.failed, self.passed);
        }
        Ok(())
    }
}

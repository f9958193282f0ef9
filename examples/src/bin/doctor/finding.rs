//! One line of the report: [`Finding`].

use serde::Serialize;

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// There, and works.
    Ok,
    /// There, with a limit.
    Warning,
    /// Not there. Nothing but what the line says depends on it.
    Missing,
    /// The embedded transport does not work without it.
    Failed,
}

/// What was found about one thing.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    /// Which part of the machine.
    pub(crate) area: &'static str,
    /// Which thing.
    pub(crate) name: String,
    pub(crate) status: Status,
    /// What there is.
    pub(crate) found: String,
    /// What that means.
    pub(crate) meaning: String,
    /// How to change it, in one line; empty where there is nothing to do.
    pub(crate) remedy: String,
}

impl Finding {
    pub(crate) fn new(
        area: &'static str,
        name: impl Into<String>,
        status: Status,
        found: impl Into<String>,
    ) -> Self {
        let (meaning, remedy) = Default::default();
        Self { area, name: name.into(), status, found: found.into(), meaning, remedy }
    }

    pub(crate) fn means(mut self, meaning: impl Into<String>) -> Self {
        self.meaning = meaning.into();
        self
    }

    pub(crate) fn remedied_by(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// Prints one area's findings.
pub(crate) fn print(findings: &[Finding]) {
    if let Some(first) = findings.first() {
        println!("\n{}", first.area);
    }
    for Finding { name, status, found, meaning, remedy, .. } in findings {
        let status = match status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Missing => "missing",
            Status::Failed => "failed",
        };
        println!("  {status:<8} {name:<24} {found}");
        for (mark, text) in [("", meaning), ("-> ", remedy)] {
            if !text.is_empty() {
                println!("  {:<33} {mark}{text}", "");
            }
        }
    }
}

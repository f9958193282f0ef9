//! What the programs of this package share: choosing a transport, and logging to stderr.

use std::path::{Path, PathBuf};
use std::time::Duration;

use connect_core::{Connector, Error};

/// Which transport a program uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TransportChoice {
    /// The embedded transport: processes of this host, nothing to install.
    Local,
    /// NIXL, found at run time. The program must be built with the cargo feature `nixl`.
    Nixl,
}

/// A connector over the chosen transport.
///
/// # Errors
/// [`Error::Start`] when the transport can't be had, which includes a program built without it.
pub fn connector(transport: TransportChoice, deadline: Duration) -> Result<Connector, Error> {
    let builder = Connector::builder().default_deadline(deadline);
    match transport {
        TransportChoice::Local => builder.build(),
        #[cfg(feature = "nixl")]
        TransportChoice::Nixl => builder.nixl(connect_core::transport::nixl::NixlConfig::default()).build(),
        #[cfg(not(feature = "nixl"))]
        TransportChoice::Nixl => Err(Error::Start {
            source: connect_core::transport::TransportError::Unavailable(
                "this program was built without NIXL; build it with `--features nixl`".to_owned(),
            ),
        }),
    }
}

/// The Python that `cargo xtask setup` installed, or the one that `CONNECT_PYTHON` names.
pub fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let installed = || root.join(".connect/venv/bin/python");
    let python = std::env::var_os("CONNECT_PYTHON").map_or_else(installed, PathBuf::from);
    python.exists().then_some(python)
}

/// Sends logs to stderr, at the level that `RUST_LOG` says; warnings unless set.
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

/// Sends the log of UCX, the engine under NIXL, to stderr as well; it goes to stdout unless told otherwise.
///
/// Call it first in `main`, before there are threads.
pub fn engine_logs_to_stderr() {
    if std::env::var_os("UCX_LOG_FILE").is_none() {
        // SAFETY: called at the start of `main`, so no other thread reads the environment.
        unsafe { std::env::set_var("UCX_LOG_FILE", "stderr") };
    }
}

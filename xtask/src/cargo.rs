//! The one place that starts cargo.

use std::env;
use std::process::Command;

use crate::layout;

/// A cargo in the workspace's root, of the toolchain that runs this program.
///
/// Its environment is the caller's: `.cargo/config.toml` holds every path the build needs, so what this program builds
/// and what a plain `cargo build` builds have one fingerprint and nothing is compiled twice. Only what `cargo run` told
/// this program about its own package is taken out, because build scripts may ask to run again when that changes.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(layout::root()).arg(subcommand);
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Tells a cargo which Python the interop programs and tests start, and that they must not skip.
///
/// Without these a test that lacks NIXL or Python passes by doing nothing, which is right for `cargo test` on a laptop
/// and wrong here.
pub(crate) fn require_peers(command: &mut Command) -> &mut Command {
    with_python(command).env("CONNECT_REQUIRE_NIXL", "1").env("CONNECT_REQUIRE_PYTHON", "1")
}

/// Tells a cargo which Python the programs start as a peer.
pub(crate) fn with_python(command: &mut Command) -> &mut Command {
    command.env("CONNECT_PYTHON", layout::python())
}

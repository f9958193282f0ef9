//! The tests once more, under programs that watch every access: AddressSanitizer with leak detection, valgrind.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo::cargo;
use crate::process;
use crate::step::{Outcome, counted};

/// The test that shows what happens after a panic of the driver: it abandons memory on purpose.
const ABANDONS: &str = "a_panic_in_the_transport";

/// The test that watches resident memory, of which the sanitizer keeps what was freed.
const COUNTS_MEMORY: &str = "nothing_is_left_behind";

/// The test of connect-candle that does.
const COSTS_MEMORY: &str = "a_received_tensor_costs";

/// What of connect-core works with threads and memory; the rest is plain data, and slow under valgrind.
const THREADED: [&str; 4] = ["transport::local", "driver::", "op::", "memory::"];

/// AddressSanitizer, which also finds leaks, over connect-core, the embedded transport between processes, and the
/// adapters.
///
/// `-Z` options belong to nightly compilers; the sanitizer's runtime comes with the stable one too, and
/// `RUSTC_BOOTSTRAP` lets it be used.
pub(super) fn asan(outcome: &mut Outcome) -> Result<()> {
    let core = ["--package", "connect-core", "--lib", "--features", "safetensors"];
    counted(asan_test().args(core).args(["--", "--skip", ABANDONS]), outcome)?;
    let embedded = [
        "--test",
        "drops",
        "--test",
        "conformance",
        "--test",
        "endings",
        "--test",
        "hostile_metadata",
        "--test",
        "liveness",
    ];
    counted(
        asan_test().args(["--package", "connect-tests"]).args(embedded).args([
            "--",
            "local",
            "--skip",
            COUNTS_MEMORY,
        ]),
        outcome,
    )?;
    // The sanitizer keeps what was freed, and this watches resident memory, too.
    let candle = ["--package", "connect-candle", "--tests", "--", "--skip", COSTS_MEMORY];
    counted(asan_test().args(candle), outcome)?;
    counted(asan_test().args(["--package", "connect-tch", "--tests"]), outcome)
}

fn asan_test() -> Command {
    let mut cargo = cargo("test");
    // A target of its own name keeps build scripts, which need no watching, out of it.
    cargo.args(["--locked", "--target", host(), "--target-dir", "target/asan"]);
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    // More memory than there is must be refused by what is tested, and not by the sanitizer.
    cargo.env("ASAN_OPTIONS", "allocator_may_return_null=1");
    cargo
}

/// Memcheck, over what of connect-core has threads.
pub(super) fn valgrind(outcome: &mut Outcome) -> Result<()> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        bail!("no valgrind. Remedy: apt-get install valgrind");
    }
    let tests = test_program("connect-core")?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args([
        "-q",
        "--error-exitcode=9",
        "--trace-children=yes",
        "--num-callers=20",
        "--leak-check=full",
    ]);
    valgrind.args(["--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"]);
    valgrind.arg(tests).args(THREADED).args(["--skip", ABANDONS, "--test-threads=2"]);
    // It is 20 times slower, and looks at each case more closely.
    counted(valgrind.env("PROPTEST_CASES", "8"), outcome)
}

/// Every order in which two threads can meet in the driver's hand-offs, by loom, which replaces their primitives.
pub(super) fn loom(outcome: &mut Outcome) -> Result<()> {
    let mut loom = cargo("test");
    loom.args([
        "--release",
        "--locked",
        "--package",
        "connect-core",
        "--lib",
        "--target-dir",
        "target/loom",
        "loom",
    ]);
    counted(loom.env("RUSTFLAGS", "--cfg loom"), outcome)
}

/// Builds a library's unit tests, and says which program they are.
fn test_program(package: &str) -> Result<String> {
    let messages = process::output(cargo("test").args([
        "--locked",
        "--no-run",
        "--message-format=json",
        "--lib",
        "--package",
        package,
    ]))?;
    let program = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(message["executable"].as_str()?.to_owned())
    });
    program.with_context(|| format!("cargo built no tests of {package}"))
}

fn host() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "aarch64-unknown-linux-gnu",
        _ => "x86_64-unknown-linux-gnu",
    }
}

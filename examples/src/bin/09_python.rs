//! 09: the other side is Python. `dynamo.nixl_connect` is used as it is; it speaks NIXL, so this side must.
//!
//! ```text
//! cargo xtask setup
//! cargo run -p connect-examples --features nixl --bin 09_python
//! ```
//! Without the feature it only shows the Python program.

use anyhow::Result;

const PYTHON: &str = include_str!("../../python/exchange.py");

fn main() -> Result<()> {
    connect_examples::engine_logs_to_stderr(); // for Python too, which inherits it
    println!("{PYTHON}");
    exchange()
}

#[cfg(not(feature = "nixl"))]
fn exchange() -> Result<()> {
    eprintln!("Built without NIXL, so this is all. `--features nixl` runs it.");
    Ok(())
}

#[cfg(feature = "nixl")]
fn exchange() -> Result<()> {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    use anyhow::{Context, ensure};
    use connect_core::transport::nixl::NixlConfig;
    use connect_core::{Connector, RdmaMetadata};

    let interpreter = connect_examples::python().context("no Python; `cargo xtask setup` installs one")?;
    let mut python = Command::new(interpreter);
    let mut python = python.args(["-c", PYTHON]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut to_python = python.stdin.take().context("a pipe")?;
    let mut from_python = BufReader::new(python.stdout.take().context("a pipe")?).lines();

    let connector = Connector::builder().nixl(NixlConfig::default()).build()?;
    let numbers: Vec<f32> = (0u8..6).map(f32::from).collect();
    let offer = connector.create_readable(numbers).wait()?;
    writeln!(to_python, "{}", offer.metadata().to_json())?;
    let report = offer.wait_for_completion().wait()?;
    println!("Python read {} bytes over {}", report.bytes, report.backend);

    let document = from_python.next().context("Python has ended")??;
    let metadata = RdmaMetadata::from_json(&document)?;
    let doubled = connector.begin_read(&metadata, vec![0f32; 6]).wait()?.wait_for_completion().wait()?;
    assert_eq!(doubled.memory, [0., 2., 4., 6., 8., 10.]);
    println!("and Rust read {} bytes that Python offered", doubled.report.bytes);
    ensure!(python.wait()?.success(), "the Python process failed");
    Ok(())
}

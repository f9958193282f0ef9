//! The numbered examples run, and what they assert holds.

use std::process::Command;

/// Runs one and returns what it printed.
fn run(program: &str) -> String {
    let output = Command::new(program).output().expect("the example starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} ended with {}:\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}

macro_rules! examples {
    ($($test:ident: $program:literal;)*) => {
        $(#[test]
        fn $test() {
            run(env!(concat!("CARGO_BIN_EXE_", $program)));
        })*
    };
}
examples! {
    bytes_move_between_two_connectors: "01_bytes";
    two_processes_need_only_a_pipe: "02_two_processes";
    a_candle_tensor_arrives_in_another_process: "03_candle_tensor";
    a_model_arrives_by_name: "04_named_tensors";
    views_are_sent_as_pieces: "05_views";
    errors_say_what_to_do: "06_deadlines_and_errors";
    many_transfers_run_side_by_side: "07_async";
    a_sender_pushes: "08_push";
    senders_push_into_a_pool: "10_pool";
    a_checkpoint_moves_from_file_to_file: "12_checkpoint";
    tensors_are_got_by_key: "13_by_key";
}

/// With NIXL and the original at hand, it also talks to Python.
#[test]
fn the_python_side_is_shown() {
    if cfg!(feature = "nixl") && !python_has_the_original() {
        assert!(std::env::var_os("CONNECT_REQUIRE_PYTHON").is_none(), "Python or the original is not there");
        eprintln!("skipped: no Python with dynamo.nixl_connect; `cargo xtask setup` installs one");
        return;
    }
    let shown = run(env!("CARGO_BIN_EXE_09_python"));
    assert!(shown.contains("await connector.begin_read"), "{shown}");
    assert_eq!(shown.contains("that Python offered"), cfg!(feature = "nixl"), "{shown}");
}

fn python_has_the_original() -> bool {
    let probe = |python| Command::new(python).args(["-c", "import dynamo.nixl_connect, torch"]).output();
    connect_examples::python().is_some_and(|python| probe(python).is_ok_and(|o| o.status.success()))
}

/// The embedded transport works wherever the tests run, so the doctor must say so.
#[test]
fn the_doctor_finds_the_embedded_transport_healthy() {
    let doctor = env!("CARGO_BIN_EXE_doctor");
    assert!(run(doctor).contains("The embedded transport works here"));

    let output = Command::new(doctor).arg("--json").output().expect("the doctor starts");
    assert!(output.status.success());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    assert_eq!(report["works"], true);
    let findings = report["findings"].as_array().expect("a list of findings");
    for name in ["cores", "same user", "built in", "transfer"] {
        assert!(findings.iter().any(|finding| finding["name"] == name), "no line on {name}");
    }
}

/// The README's six lines are those of example 03, which is compiled and run.
#[test]
fn the_readme_shows_code_that_runs() {
    let (readme, example) = (include_str!("../../README.md"), include_str!("../src/bin/03_candle_tensor.rs"));
    let example: Vec<&str> = example.lines().map(str::trim).collect();
    let blocks: Vec<&str> =
        readme.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 2, "one block sends and one receives");
    for block in blocks {
        let lines: Vec<&str> = block.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let found = example.windows(lines.len()).any(|window| window == lines);
        assert!(found, "not in example 03 as it stands:\n{block}");
    }
}

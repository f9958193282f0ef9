//! `peer` keeps its promises: JSON lines on standard output and nothing else, and an exit status to rely on.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use serde_json::Value;

/// One `peer` process.
struct Peer {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Peer {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_peer"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("peer starts");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, stdin, stdout }
    }

    /// The next line, which must be a JSON object with an event.
    fn event(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("UTF-8");
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert!(event["event"].is_string(), "{line}");
        event
    }

    fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("not closed before");
        writeln!(stdin, "{line}").expect("peer reads its input");
    }

    /// Closes its input and waits; there must be no output left.
    fn end(mut self) -> ExitStatus {
        drop(self.stdin.take());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("UTF-8");
        assert_eq!(rest, "", "output after the last event");
        self.child.wait().expect("it was started")
    }

    /// The event must be an error of this kind, and the last thing it says.
    fn fails(mut self, kind: &str) -> String {
        let event = self.event();
        assert_eq!((&event["event"], &event["kind"]), (&"error".into(), &kind.into()), "{event}");
        assert_eq!(self.end().code(), Some(1));
        event["message"].as_str().expect("a message").to_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn assert_complete(event: &Value, bytes: u64) {
    assert_eq!((&event["event"], &event["bytes"]), (&"complete".into(), &bytes.into()), "{event}");
    assert!(event["seconds"].as_f64().is_some_and(|seconds| seconds >= 0.), "{event}");
}

#[test]
fn what_is_readable_is_read_and_checked() {
    let mut offering = Peer::start(&["readable", "--size", "100000", "--seed", "7"]);
    let mut reading = Peer::start(&["read", "--seed", "7"]);
    // `read` takes the line as `readable` prints it: the two can be piped together.
    reading.tell(&offering.event().to_string());
    let event = reading.event();
    assert_complete(&event, 100_000);
    assert_eq!(event["verified"], true);
    assert_complete(&offering.event(), 100_000);
    assert!(reading.end().success() && offering.end().success());
}

#[test]
fn what_is_writable_is_written_and_checked() {
    let mut offering = Peer::start(&["writable", "--size", "100000", "--seed", "9"]);
    let mut writing = Peer::start(&["write", "--seed", "9"]);
    // And the bare document as well.
    writing.tell(&offering.event()["metadata"].to_string());
    assert_complete(&writing.event(), 100_000);
    let event = offering.event();
    assert_complete(&event, 100_000);
    assert_eq!(event["verified"], true);
    assert!(writing.end().success() && offering.end().success());
}

#[test]
fn several_rounds_of_several_descriptors_go_over_one_pair_of_peers() {
    let mut offering = Peer::start(&["readable", "--size", "1000", "--descriptors", "3", "--rounds", "4"]);
    let mut reading = Peer::start(&["read"]);
    for _ in 0..4 {
        let offer = offering.event();
        assert_eq!(offer["metadata"]["descriptors"].as_array().map(Vec::len), Some(3));
        reading.tell(&offer.to_string());
        assert_complete(&reading.event(), 3000);
        assert_complete(&offering.event(), 3000);
    }
    assert!(reading.end().success() && offering.end().success());
}

#[test]
fn other_bytes_than_expected_are_reported_as_corrupt() {
    let mut offering = Peer::start(&["readable", "--size", "100", "--seed", "1"]);
    let mut reading = Peer::start(&["read", "--seed", "2"]);
    reading.tell(&offering.event().to_string());
    assert_eq!(reading.event()["verified"], false);
    reading.fails("corrupt");
    assert_complete(&offering.event(), 100);
}

#[test]
fn a_wrong_size_or_count_is_refused_before_anything_moves() {
    let mut offering = Peer::start(&["readable", "--size", "100"]);
    let offer = offering.event().to_string();
    for (arguments, reason) in
        [(&["read", "--size", "99"][..], "100"), (&["read", "--size", "100", "--descriptors", "2"], "2")]
    {
        let mut reading = Peer::start(arguments);
        reading.tell(&offer);
        let message = reading.fails("protocol");
        assert!(message.contains(reason), "{message}");
    }
    let mut writing = Peer::start(&["write"]);
    writing.tell(&offer);
    writing.fails("protocol");
    // The offer stands.
    let mut reading = Peer::start(&["read"]);
    reading.tell(&offer);
    assert_complete(&reading.event(), 100);
    assert!(reading.end().success());
}

#[test]
fn a_malformed_line_is_a_protocol_error() {
    for line in ["", "{", "null", "[]", "{\"event\": \"metadata\"}", "{\"descriptors\": []}"] {
        let mut reading = Peer::start(&["read"]);
        reading.tell(line);
        reading.fails("protocol");
    }
}

#[test]
fn nobody_coming_is_a_deadline() {
    let mut offering = Peer::start(&["readable", "--size", "10", "--timeout", "1.5"]);
    assert_eq!(offering.event()["event"], "metadata");
    offering.fails("deadline");
    let mut offering = Peer::start(&["writable", "--size", "10", "--timeout", "1.5"]);
    assert_eq!(offering.event()["event"], "metadata");
    offering.fails("deadline");
}

#[test]
fn a_peer_that_is_gone_is_a_peer_error() {
    let mut offering = Peer::start(&["readable", "--size", "10"]);
    let offer = offering.event().to_string();
    drop(offering);
    let mut reading = Peer::start(&["read"]);
    reading.tell(&offer);
    reading.fails("peer");
}

#[test]
fn wrong_arguments_are_told_on_standard_output_too() {
    Peer::start(&["readable"]).fails("usage");
    Peer::start(&["sideways"]).fails("usage");
    Peer::start(&["read", "--timeout", "-1"]).fails("usage");
}

#[test]
fn no_input_is_no_work() {
    assert!(Peer::start(&["read"]).end().success());
}

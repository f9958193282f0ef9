//! Two real processes: this test program starts itself again as the other side.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::*;

const ROLE: &str = "CONNECT_LOCAL_TEST_ROLE";
/// The user that owns nothing.
const NOBODY: u32 = 65534;

const SIZE: usize = 32 * 1024 * 1024;

/// The other process. It does nothing unless it was started by a test below.
#[test]
fn other_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let blob = data_encoding::HEXLOWER.decode(words[0].as_bytes()).unwrap();
    let remote = [Region::new(Device::CPU, words[1].parse().unwrap(), SIZE as u64).unwrap()];
    let kind = if words[2] == "READ" { OperationKind::Read } else { OperationKind::Write };
    let way = if words[3] == "Stream" { Way::Stream } else { Way::Direct };
    let mut client = transport(way.config().allow_other_users(role == "stranger"), "client");
    let mut own = match kind {
        OperationKind::Read => Memory::zeroed(&[SIZE]),
        OperationKind::Write => Memory::pattern(&[SIZE]),
    };
    let peer = match client.connect(&blob) {
        Ok((peer, _)) => peer,
        Err(TransportError::Refused(why)) => return println!("\nREFUSED {why}"),
        Err(other) => panic!("{other}"),
    };
    let local = own.regions();
    let id = client.call_begin(&Transfer { peer, kind, local: &local, remote: &remote, key: KEY }).unwrap();
    let started = Instant::now();
    loop {
        let worked = client.progress(&mut vec![]);
        match client.poll(id).unwrap() {
            TransferState::Complete => break,
            TransferState::Pending { .. } if role == "stop" && own.parts[0][0] != 0 => {
                println!("\nUNDER WAY");
                std::thread::sleep(Duration::from_secs(60));
            }
            TransferState::Pending { advanced } if advanced || worked => {}
            TransferState::Pending { .. } => client.wait(Some(Duration::from_secs(20))),
        }
    }
    println!("\nMOVED in {:?}", started.elapsed());
    assert!(own.parts == Memory::pattern(&[SIZE]).parts);
}

struct Other {
    child: Child,
    _stdin: ChildStdin,
}

impl Other {
    fn start(role: &str, way: Way, scene: &mut Scene) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        if role == "stranger" {
            command.uid(NOBODY);
        }
        let mut child = command
            .args(["--exact", "--nocapture", "transport::local::tests::processes::other_process"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let blob = data_encoding::HEXLOWER.encode(&scene.blob);
        let addr = scene.offered.regions()[0].addr();
        writeln!(stdin, "{blob} {addr} {} {way:?}", scene.kind).unwrap();
        Self { child, _stdin: stdin }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Only root can start a process of another user, and that user must be able to run this program.
#[test]
fn bytes_move_between_users_where_both_allow_it_and_by_the_socket() {
    let program = std::env::current_exe().unwrap();
    let check = Command::new(program).arg("--list").uid(NOBODY).stdout(Stdio::null()).status();
    if !check.is_ok_and(|status| status.success()) {
        return;
    }
    for allowed in [true, false] {
        let mut scene = Scene::new(Way::Direct, OperationKind::Write, &[SIZE]);
        let config = LocalConfig::default().socket_dir(std::env::temp_dir()).allow_other_users(allowed);
        scene.server = transport(config, "server");
        let regions = scene.offered.regions();
        let offer = Offer { kind: OperationKind::Write, regions: &regions, key: KEY };
        scene.blob = scene.server.call_offer(&offer).unwrap().1;
        let mut other = Other::start("stranger", Way::Direct, &mut scene);
        let status = until(|| {
            if !scene.serve() {
                scene.server.wait(Some(Duration::from_millis(10)));
            }
            other.child.try_wait().unwrap()
        });
        assert!(status.success());
        let said = std::io::read_to_string(other.child.stdout.take().unwrap()).unwrap();
        let word = if allowed { "\nMOVED in" } else { "\nREFUSED" };
        assert!(said.contains(word), "{said}");
        assert_eq!(scene.events.len(), usize::from(allowed));
    }
}

#[test]
fn bytes_move_between_processes() {
    for way in [Way::Direct, Way::Stream] {
        for kind in [OperationKind::Read, OperationKind::Write] {
            let mut scene = Scene::new(way, kind, &[SIZE]);
            let mut other = Other::start("move", way, &mut scene);
            let status = until(|| {
                if !scene.serve() {
                    scene.server.wait(Some(Duration::from_millis(10)));
                }
                other.child.try_wait().unwrap()
            });
            assert!(status.success(), "{way:?} {kind}");
            scene.assert_notified();
            assert!(scene.offered.parts == Memory::pattern(&[SIZE]).parts, "{way:?} {kind}");
        }
    }
}

#[test]
fn a_killed_reader_leaves_the_offer_quiet_and_open() {
    let mut scene = Scene::new(Way::Direct, OperationKind::Read, &[SIZE]);
    let mut other = Other::start("stop", Way::Direct, &mut scene);
    let out = BufReader::new(other.child.stdout.take().unwrap());
    let reading = std::thread::spawn(move || out.lines().any(|line| line.unwrap() == "UNDER WAY"));
    until(|| {
        if !scene.serve() {
            scene.server.wait(Some(Duration::from_millis(10)));
        }
        reading.is_finished().then_some(())
    });
    assert!(reading.join().unwrap());
    other.child.kill().unwrap();
    // A client of this process takes what the other one left.
    until(|| (scene.serve() && scene.server.offer_is_quiet(scene.offer) == Quiescence::Busy).then_some(()));
    let id = scene.begin();
    scene.run(id).unwrap();
    scene.assert_moved();
    scene.assert_lost();
    scene.assert_notified();
}

#[test]
fn an_offer_withdrawn_under_a_stopped_reader_is_busy_until_it_dies() {
    let mut scene = Scene::new(Way::Direct, OperationKind::Read, &[SIZE]);
    let mut other = Other::start("stop", Way::Direct, &mut scene);
    let out = BufReader::new(other.child.stdout.take().unwrap());
    let reading = std::thread::spawn(move || out.lines().any(|line| line.unwrap() == "UNDER WAY"));
    until(|| {
        if !scene.serve() {
            scene.server.wait(Some(Duration::from_millis(10)));
        }
        reading.is_finished().then_some(())
    });
    assert_eq!(scene.server.end_offer(scene.offer, false), Quiescence::Busy);
    scene.server.wait(Some(Duration::from_millis(50)));
    scene.serve();
    assert_eq!(scene.server.offer_is_quiet(scene.offer), Quiescence::Busy);
    other.child.kill().unwrap();
    until(|| {
        scene.serve();
        (scene.server.offer_is_quiet(scene.offer) == Quiescence::Quiet).then_some(())
    });
    assert!(scene.events.is_empty());
}

//! Falling asleep against sending, in every order that the memory model allows.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p connect-core --lib loom
//! ```

use std::sync::Arc;

use loom::sync::Notify;
use loom::thread;

use super::port::{Command, Inbox, Port, channel};
use crate::op::state::Why;

/// The two ends, and what the driver sleeps on. Loom's `park` forgets an `unpark` that comes while the thread
/// waits for a lock; its `Notify` does not.
fn pair() -> (Port, Inbox, Arc<Notify>) {
    let (port, inbox) = channel();
    let bell = Arc::new(Notify::new());
    let rung = Arc::clone(&bell);
    inbox.set_waker(Arc::new(move || rung.notify()));
    (port, inbox, bell)
}

/// What the driver does between two turns: it sleeps unless there is something to do.
fn next(inbox: &Inbox, bell: &Notify) -> Command {
    loop {
        if let Some(command) = inbox.try_recv() {
            return command;
        }
        if let Some(command) = inbox.falling_asleep() {
            return command;
        }
        bell.wait();
        inbox.awake();
    }
}

/// Loom reports a driver that sleeps with a command in its inbox as a deadlock.
#[test]
fn loom_p2_no_command_is_slept_through() {
    loom::model(|| {
        let (port, inbox, bell) = pair();
        let sender = thread::spawn(move || {
            for id in 1..=2 {
                assert!(port.send(Command::Stop(id, Why::Cancelled)).is_ok());
            }
        });
        for id in 1..=2 {
            assert!(matches!(next(&inbox, &bell), Command::Stop(sent, _) if sent == id));
        }
        sender.join().unwrap();
    });
}

#[test]
fn loom_p2_no_command_of_two_senders_is_slept_through() {
    // All orders of three threads take minutes; those with up to three switches that nobody waited for, seconds.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let (port, inbox, bell) = pair();
        let senders = [1, 2].map(|id| {
            let port = port.clone();
            thread::spawn(move || assert!(port.send(Command::Stop(id, Why::Cancelled)).is_ok()))
        });
        let ids = [(); 2].map(|()| match next(&inbox, &bell) {
            Command::Stop(id, _) => id,
            _ => unreachable!("nobody sends anything else"),
        });
        assert_eq!(ids[0] + ids[1], 3);
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

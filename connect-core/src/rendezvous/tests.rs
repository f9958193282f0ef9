use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;
use crate::{DType, Error, TensorSpec};

fn offer(connector: &Connector, content: u8) -> Task<ReadableTensors, RendezvousError> {
    let tensor = TensorSpec::new("x", DType::U8, [8], 0..1).map_err(Error::from);
    Task::after(connector.create_readable(vec![content; 8]), |opened| {
        let offer = opened.and_then(|offer| Ok(ReadableTensors::new(offer, vec![tensor?])?));
        Task::ready(offer.map_err(RendezvousError::from))
    })
}

fn receive(connector: &Connector, envelope: &TensorEnvelope) -> Task<u8, RendezvousError> {
    Task::after(connector.begin_read(envelope.metadata(), vec![0u8; 8]), |begun| match begun {
        Ok(read) => Task::after(read.wait_for_completion(), |ended| {
            Task::ready(ended.map(|received| received.memory[7]).map_err(|failed| failed.error.into()))
        }),
        Err(failed) => Task::ready(Err(failed.error.into())),
    })
}

fn connector(deadline: u64) -> Connector {
    Connector::local().unwrap().with_deadline(Duration::from_millis(deadline))
}

/// Both kinds that are built in. The folder is gone with its guard.
fn each_kind() -> [(Rendezvous, Option<tempfile::TempDir>); 2] {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = Rendezvous::folder(folder.path().join("made")).unwrap();
    [(Rendezvous::in_memory(), None), (in_folder, Some(folder))]
}

#[test]
fn what_is_put_is_got_as_often_as_there_are_offers_and_first_things_first() {
    for (rendezvous, _folder) in each_kind() {
        let (sender, receiver) = (connector(20_000), connector(20_000));
        let put = rendezvous.put("a/../key", [offer(&sender, 1), offer(&sender, 2)]).wait().unwrap();
        let other = rendezvous.put("another", [offer(&sender, 3)]).wait().unwrap();
        let get = |key| rendezvous.get(&receiver, key, receive);
        assert_eq!((get("a/../key").wait().unwrap(), get("a/../key").wait().unwrap()), (1, 2));
        assert_eq!(futures_executor::block_on(get("another")).unwrap(), 3);
        assert!(
            put.wait_for_completion()
                .wait()
                .iter()
                .chain(&other.wait_for_completion().wait())
                .all(Result::is_ok)
        );

        let late = rendezvous.get(&connector(50), "a/../key", receive).wait().unwrap_err();
        assert!(matches!(late, RendezvousError::NotThere { .. }) && late.is_retryable(), "{late}");
    }
}

#[test]
fn who_comes_early_waits() {
    for (rendezvous, _folder) in each_kind() {
        let (sender, receiver) = (connector(20_000), connector(20_000));
        let got = rendezvous.get(&receiver, "k", receive);
        std::thread::sleep(Duration::from_millis(30));
        let put = rendezvous.put("k", [offer(&sender, 9)]).wait().unwrap();
        assert_eq!(got.wait().unwrap(), 9);
        drop(put);
    }
}

#[test]
fn p2_a_get_that_nobody_answers_ends_with_the_deadline() {
    let begin = Instant::now();
    let error = Rendezvous::in_memory().get(&connector(100), "k", receive).wait().unwrap_err();
    assert!((100..5000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
    assert!(error.to_string().starts_with("nothing was under \"k\" for "), "{error}");
}

#[test]
fn a_get_that_is_dropped_leaves_what_comes_later_to_others() {
    for (rendezvous, _folder) in each_kind() {
        let (sender, receiver) = (connector(20_000), connector(20_000));
        drop(rendezvous.get(
            &receiver,
            "k",
            |_: &Connector, _: &TensorEnvelope| -> Task<u8, RendezvousError> {
                panic!("nobody waits for it")
            },
        ));
        let put = rendezvous.put("k", [offer(&sender, 4)]).wait().unwrap();
        assert_eq!(rendezvous.get(&receiver, "k", receive).wait().unwrap(), 4);
        drop(put);
    }
}

/// Twenty receivers in two handles of one folder, as two processes would have.
#[test]
fn each_document_in_a_folder_is_taken_once() {
    let folder = tempfile::tempdir().unwrap();
    let (sender, receiver) = (connector(20_000), connector(20_000));
    let handles = [(); 2].map(|()| Rendezvous::folder(folder.path()).unwrap());
    let gets: Vec<_> = (0..20).map(|i| handles[i % 2].get(&receiver, "k", receive)).collect();
    let put = handles[0].put("k", (0..20).map(|content| offer(&sender, content))).wait().unwrap();
    let mut got: Vec<u8> = gets.into_iter().map(|get| get.wait().unwrap()).collect();
    got.sort_unstable();
    assert_eq!(got, (0..20).collect::<Vec<u8>>());
    assert!(put.wait_for_completion().wait().iter().all(Result::is_ok));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files are left");
}

#[test]
fn files_are_for_their_user_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made");
    let rendezvous = Rendezvous::folder(&path).unwrap();
    let put = rendezvous.put("k", [offer(&connector(20_000), 1)]).wait().unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let file = std::fs::read_dir(&path).unwrap().next().unwrap().unwrap().path();
    assert_eq!((mode(&path), mode(&file)), (0o700, 0o600));
    drop(put);
}

#[test]
fn keys_and_lists_of_offers_are_checked_before_anything_is_offered() {
    let (rendezvous, connector) = (Rendezvous::in_memory(), connector(1000));
    for key in ["", &"k".repeat(MAX_KEY_BYTES + 1)] {
        let put = rendezvous.put(key, [offer(&connector, 1)]).wait().unwrap_err();
        let got = rendezvous.get(&connector, key, receive).wait().unwrap_err();
        assert!(matches!((put, got), (RendezvousError::Key { .. }, RendezvousError::Key { .. })));
    }
    let none: [Task<ReadableTensors, RendezvousError>; 0] = [];
    assert!(matches!(rendezvous.put("k", none).wait(), Err(RendezvousError::NoOffers)));
}

/// Fails, panics, or has something else under every key.
struct Broken(AtomicUsize);

impl SideChannel for Broken {
    fn put(&self, _: &str, _: &str) -> Result<(), ChannelError> {
        Err("the store is full".into())
    }

    fn take(&self, _: &str) -> Result<Option<String>, ChannelError> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 => Err("no route to the store".into()),
            1 => panic!("a bug in the channel"),
            _ => Ok(Some("[]".to_owned())),
        }
    }
}

#[test]
fn p2_p6_what_a_channel_does_wrong_is_told_and_hangs_nobody() {
    let (rendezvous, connector) = (Rendezvous::new(Broken(AtomicUsize::new(0))), connector(20_000));
    let error = rendezvous.put("k", [offer(&connector, 1)]).wait().unwrap_err();
    assert!(error.to_string().contains("for \"k\": the store is full"), "{error}");
    for reason in ["no route to the store", "it panicked", "is no envelope"] {
        let error = rendezvous.get(&connector, "k", receive).wait().unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    let begin = Instant::now();
    while connector.stats().open > 0 {
        assert!(begin.elapsed() < Duration::from_secs(5), "the offer that could not be put stands");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_task_wakes_whoever_awaits_it() {
    let (rendezvous, sender) = (Rendezvous::in_memory(), connector(20_000));
    let (awaiting, awaited) = (rendezvous.clone(), mpsc::channel());
    let thread = std::thread::spawn(move || {
        let got = futures_executor::block_on(awaiting.get(&connector(20_000), "k", receive));
        awaited.0.send(got.unwrap()).unwrap();
    });
    std::thread::sleep(Duration::from_millis(20));
    let put = futures_executor::block_on(rendezvous.put("k", [offer(&sender, 5)])).unwrap();
    assert_eq!(awaited.1.recv_timeout(Duration::from_secs(10)), Ok(5));
    thread.join().unwrap();
    drop(put);
}

#[test]
fn a_folder_that_others_can_write_to_is_refused_and_what_is_no_file_is_not_waited_for() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = Rendezvous::folder(folder.path()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    Rendezvous::folder(folder.path()).unwrap();
    let name = format!("{}-0", blake3::hash(b"key").to_hex());
    nix::unistd::mkfifo(&folder.path().join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let channel = super::folder::Folder::new(folder.path()).unwrap();
    assert_eq!(channel.take("key").unwrap(), Some(String::new()), "nobody has written to the pipe");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

//! Files that are opened and served.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::made::{content, file, folder, parsed, tensors};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::{Connector, Digest};

#[test]
fn every_tensor_is_served_from_the_file_s_own_pages_without_a_copy() {
    let (folder, connector) = (folder(), Connector::local().unwrap());
    let path = file(folder.path(), "model.safetensors", "");
    let served = Checkpoint::open(&path).unwrap().serve(&connector).wait().unwrap();
    let header = fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(header[..8].try_into().unwrap());
    let base = served.checkpoint().files[0].pages.region();
    for (name, dtype, shape, bytes) in tensors().into_iter().filter(|(.., bytes)| !bytes.is_empty()) {
        let offer = served.offer_with_digests([name, "none"]).wait().unwrap();
        let spec = offer.envelope().get(name).unwrap();
        assert_eq!((spec.dtype.to_string(), spec.shape.len()), (dtype.to_string(), shape.len()), "{name}");
        assert_eq!(spec.digest, Some(Digest::of(&bytes)));
        let region = offer.metadata().regions()[0];
        assert!(base.contains(&region) && region.addr() >= base.addr() + data, "{name}");
        let read = connector.begin_read(offer.metadata(), vec![0u8; bytes.len()]).wait().unwrap();
        assert_eq!(read.wait_for_completion().wait().unwrap().memory, bytes, "{name}");
        assert_eq!(served.checkpoint().read(name).unwrap(), bytes);
        offer.wait_for_completion().wait().unwrap();
    }
    let error = served.offer(["nobody"]).wait().unwrap_err();
    assert!(matches!(error, CheckpointError::NoTensor { .. }), "{error}");
    let error = served.offer(["wide", "wide"]).wait().unwrap_err();
    assert!(matches!(error, CheckpointError::Envelope(_)), "{error}");
    let error = served.offer(["none"]).wait().unwrap_err();
    assert!(matches!(error, CheckpointError::Operation(_)), "{error}");
}

#[test]
fn files_of_an_index_are_one_checkpoint_and_a_folder_is_searched_for_it() {
    let folder = folder();
    let alone = file(folder.path(), "model.safetensors", "wide");
    assert_eq!(Checkpoint::open(folder.path()).unwrap().tensors().count(), 1);
    fs::remove_file(alone).unwrap();

    file(folder.path(), "a.safetensors", "layers.0");
    file(folder.path(), "b.safetensors", "");
    let index = folder.path().join("model.safetensors.index.json");
    let map = r#""layers.0.w":"a.safetensors","layers.1.w":"b.safetensors","odd":"b.safetensors""#;
    fs::write(&index, format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{{{map}}}}}"#)).unwrap();
    for path in [&index, folder.path()] {
        let checkpoint = Checkpoint::open(path).unwrap();
        let mut names: Vec<_> = checkpoint.tensors().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["layers.0.w", "layers.1.w", "odd"], "what the index does not name is left out");
        assert_eq!(checkpoint.read("layers.1.w").unwrap(), content(40_000, 3));
        let manifest = checkpoint.manifest().unwrap();
        assert_eq!((manifest.metadata()["format"].as_str(), manifest.total_bytes()), ("pt", 44_231));
    }
    for (map, says) in [
        (r#""odd":"../b.safetensors""#, "no name of a file"),
        (r#""odd":"/etc/passwd""#, "no name of a file"),
        (r#""odd":"..""#, "no name of a file"),
        (r#""odd":"""#, "no name of a file"),
        (r#""missing":"b.safetensors""#, "no tensor"),
        ("", "names no file"),
    ] {
        fs::write(&index, format!(r#"{{"weight_map":{{{map}}}}}"#)).unwrap();
        let error = Checkpoint::open(&index).unwrap_err();
        assert!(
            matches!(error, CheckpointError::Index { .. }) && error.to_string().contains(says),
            "{error}"
        );
    }
    fs::write(&index, r#"{"weight_map":{"odd":"gone.safetensors"}}"#).unwrap();
    assert!(matches!(Checkpoint::open(&index), Err(CheckpointError::Io { .. })));
}

#[test]
fn a_selection_has_fewer_tensors_and_batches_are_of_the_size_that_was_asked_for() {
    let folder = folder();
    let checkpoint = Checkpoint::open(file(folder.path(), "m.safetensors", "")).unwrap();
    let layers = checkpoint.select(|tensor| tensor.name.starts_with("layers."));
    assert_eq!(layers.tensors().count(), 2);
    assert!(layers.read("layers.0.w").is_ok() && layers.read("wide").is_err());

    let batches = checkpoint.batches(5_000);
    let flat: Vec<_> = batches.iter().flatten().copied().collect();
    let all: Vec<_> =
        checkpoint.tensors().filter(|t| t.byte_len > 0).map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(flat, all, "each once, in order, and none without elements");
    for batch in &batches {
        let bytes: usize = batch.iter().map(|name| checkpoint.read(name).unwrap().len()).sum();
        assert!(bytes <= 5_000 || batch.len() == 1, "{batch:?} has {bytes} bytes");
    }
}

#[test]
fn a_file_that_was_changed_is_not_offered_and_its_copy_still_is() {
    let (folder, connector) = (folder(), Connector::local().unwrap());
    let path = file(folder.path(), "m.safetensors", "");
    let served = Checkpoint::open(&path).unwrap().serve(&connector).wait().unwrap();
    let copied = Checkpoint::open_a_copy(&path).unwrap().serve(&connector).wait().unwrap();
    served.checkpoint().check_unchanged().unwrap();

    std::thread::sleep(Duration::from_millis(20)); // file systems count time in ticks
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(b"!").unwrap();
    let error = served.offer(["odd"]).wait().unwrap_err();
    assert!(matches!(error, CheckpointError::Changed { .. }), "{error}");
    assert!(
        error.to_string().contains("written to") && error.to_string().contains("open it again"),
        "{error}"
    );

    writer.set_len(100).unwrap();
    for error in
        [served.offer(["odd"]).wait().unwrap_err(), served.checkpoint().check_unchanged().unwrap_err()]
    {
        assert!(matches!(error, CheckpointError::Changed { .. }), "{error}");
        assert!(error.to_string().contains("has 100"), "{error}");
    }
    assert!(
        matches!(served.checkpoint().read("odd"), Err(CheckpointError::Io { .. })),
        "an error and no signal"
    );
    assert!(served.offer_with_digests(["odd"]).wait().is_err());

    copied.checkpoint().check_unchanged().unwrap();
    let offer = copied.offer_with_digests(["layers.1.w"]).wait().unwrap();
    let read = connector.begin_read(offer.metadata(), vec![0u8; 40_000]).wait().unwrap();
    assert_eq!(read.wait_for_completion().wait().unwrap().memory, content(40_000, 3));
}

#[test]
fn a_file_that_is_replaced_goes_on_being_served_as_it_was() {
    let folder = folder();
    let path = file(folder.path(), "m.safetensors", "odd");
    let checkpoint = Checkpoint::open(&path).unwrap();
    fs::rename(file(folder.path(), "new.safetensors", "wide"), &path).unwrap();
    checkpoint.check_unchanged().unwrap();
    assert_eq!(checkpoint.read("odd").unwrap(), content(7, 4));
    assert_eq!(parsed(&path).len(), 1);
}

#[test]
fn those_who_ask_before_they_write_are_kept_out_while_a_file_is_open() {
    let folder = folder();
    let path = file(folder.path(), "m.safetensors", "odd");
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(Checkpoint::open(&path).is_ok(), "readers share");
    let exclusive = || Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock);
    assert!(exclusive().is_err());
    drop(checkpoint);
    let writer = exclusive().expect("nobody has it any more");
    let error = Checkpoint::open(&path).unwrap_err();
    assert!(matches!(error, CheckpointError::Locked { .. }) && error.is_retryable(), "{error}");
    drop(writer);
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let folder = folder();
    let pipe = folder.path().join("pipe.safetensors");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = Checkpoint::open(&pipe).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
    assert!(matches!(Checkpoint::open(folder.path()), Err(CheckpointError::Io { .. })));
}

//! Files that are received.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::made::{content, file, folder, parsed};
use crate::checkpoint::{Checkpoint, CheckpointError, Download, Manifest, Served};
use crate::{Connector, DType, TensorEnvelope, TensorSpec};

fn served(folder: &Path, connector: &Connector) -> Served {
    Checkpoint::open(file(folder, "m.safetensors", "")).unwrap().serve(connector).wait().unwrap()
}

fn begin(connector: &Connector, path: &Path, served: &Served) -> Download {
    let manifest = served.checkpoint().manifest_with_digests().unwrap().to_json();
    Download::begin(connector, path, &Manifest::from_json(&manifest).unwrap()).wait().unwrap()
}

#[test]
fn a_checkpoint_arrives_as_an_equal_file_which_has_its_name_only_when_it_is_whole() {
    let (folder, connector) = (folder(), Connector::local().unwrap());
    let (served, copy) = (served(folder.path(), &connector), folder.path().join("copy.safetensors"));
    let download = begin(&connector, &copy, &served);
    let mut seen = vec![download.progress()];
    for batch in served.checkpoint().batches(5_000) {
        assert!(!copy.exists());
        let offer = served.offer_with_digests(&batch).wait().unwrap();
        let envelope = TensorEnvelope::from_json(&offer.envelope().to_json()).unwrap();
        download.receive(&envelope).wait().unwrap();
        offer.wait_for_completion().wait().unwrap();
        seen.push(download.progress());
    }
    assert!(seen.windows(2).all(|pair| pair[0].bytes < pair[1].bytes));
    let last = seen.last().unwrap();
    assert_eq!((last.bytes, last.tensors), (last.total_bytes, last.total_tensors));
    assert_eq!(download.finish().unwrap(), copy);
    assert_eq!(parsed(&copy), parsed(&folder.path().join("m.safetensors")));
    assert_eq!(Checkpoint::open(&copy).unwrap().manifest().unwrap().metadata()["by"], "a test");
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn an_interrupted_download_goes_on_with_what_it_can_verify() {
    let (folder, connector) = (folder(), Connector::local().unwrap());
    let (served, copy) = (served(folder.path(), &connector), folder.path().join("copy.safetensors"));
    let part = folder.path().join(".copy.safetensors.part");
    let download = begin(&connector, &copy, &served);
    let offer = served.offer(["layers.0.w", "wide", "odd"]).wait().unwrap();
    download.receive(offer.envelope()).wait().unwrap();
    drop(download);

    // One of the three is damaged meanwhile.
    let checkpoint = Checkpoint::open(&part).unwrap();
    let (entry, data) = (checkpoint.entry("wide").unwrap(), checkpoint.files[0].source.path().to_owned());
    let at = entry.start;
    drop(checkpoint);
    fs::OpenOptions::new().write(true).open(data).unwrap().write_all_at(b"?", at + 3).unwrap();

    let download = begin(&connector, &copy, &served);
    let mut missing: Vec<String> = download.missing().into_iter().map(str::to_owned).collect();
    missing.sort();
    assert_eq!(missing, ["layers.1.w", "packed", "scalar", "wide"]);
    let offer = served.offer(&missing).wait().unwrap();
    let report = download.receive(offer.envelope()).wait().unwrap();
    assert_eq!(report.bytes, 40_000 + 3 + 8 + 120, "only those travel");
    download.finish().unwrap();
    assert_eq!(parsed(&copy), parsed(&folder.path().join("m.safetensors")));
}

#[test]
fn what_was_left_of_another_checkpoint_or_without_digests_is_not_taken_over() {
    let (folder, connector) = (folder(), Connector::local().unwrap());
    let (served, copy) = (served(folder.path(), &connector), folder.path().join("copy.safetensors"));
    let download = begin(&connector, &copy, &served);
    download.receive(served.offer(["wide"]).wait().unwrap().envelope()).wait().unwrap();
    drop(download);
    let plain = served.checkpoint().manifest().unwrap();
    assert!(Download::begin(&connector, &copy, &plain).wait().unwrap().missing().contains(&"wide"));
    let other = served.checkpoint().select(|tensor| tensor.name != "odd").manifest_with_digests().unwrap();
    let download = Download::begin(&connector, &copy, &other).wait().unwrap();
    assert_eq!(download.missing().len(), 5);
}

#[test]
fn an_unfinished_download_says_what_is_missing_and_two_of_one_name_do_not_meet() {
    let (folder, connector) = (folder(), Connector::local().unwrap());
    let (served, copy) = (served(folder.path(), &connector), folder.path().join("copy.safetensors"));
    let download = begin(&connector, &copy, &served);
    let manifest = served.checkpoint().manifest().unwrap();
    let error = Download::begin(&connector, &copy, &manifest).wait().unwrap_err();
    assert!(matches!(error, CheckpointError::Locked { .. }) && error.is_retryable(), "{error}");
    let error = download.finish().unwrap_err();
    assert!(matches!(error, CheckpointError::Incomplete { count: 6, .. }), "{error}");
    assert!(!copy.exists());
}

#[test]
fn bytes_that_are_not_what_was_promised_do_not_count_as_there() {
    let (folder, connector) = (folder(), Connector::local().unwrap());
    let (served, copy) = (served(folder.path(), &connector), folder.path().join("copy.safetensors"));
    let download = begin(&connector, &copy, &served);
    let forged = connector.create_readable(vec![9u8; 120]).wait().unwrap();
    let spec = TensorSpec::new("wide", DType::F64, [3, 5], 0..1).unwrap();
    let envelope = TensorEnvelope::new(forged.metadata().clone(), vec![spec]).unwrap();
    let error = download.receive(&envelope).wait().unwrap_err();
    assert!(matches!(&error, CheckpointError::Digest(mismatch) if mismatch.name == "wide"), "{error}");
    assert!(download.missing().contains(&"wide"));
    download.receive(served.offer(["wide"]).wait().unwrap().envelope()).wait().unwrap();
    assert!(!download.missing().contains(&"wide"), "and it can be sent again");
}

#[test]
fn tensors_that_do_not_fit_the_manifest_are_refused_before_the_transfer() {
    let (folder, connector) = (folder(), Connector::local().unwrap());
    let (served, copy) = (served(folder.path(), &connector), folder.path().join("copy.safetensors"));
    let download = begin(&connector, &copy, &served);
    let refused = |name: &str, dtype: DType, shape: &[u64]| {
        let bytes = dtype.byte_len(shape.iter().product()).unwrap() as usize;
        let offer = connector.create_readable(vec![0u8; bytes]).wait().unwrap();
        let spec = TensorSpec::new(name, dtype, shape, 0..1).unwrap();
        let envelope = TensorEnvelope::new(offer.metadata().clone(), vec![spec]).unwrap();
        download.receive(&envelope).wait().unwrap_err()
    };
    let error = refused("wide", DType::I64, &[3, 5]);
    assert!(
        matches!(error, CheckpointError::Mismatch { .. }) && error.to_string().contains("I64"),
        "{error}"
    );
    let error = refused("wide", DType::F64, &[5, 3]);
    assert!(error.to_string().contains("[5, 3] instead of [3, 5]"), "{error}");
    let error = refused("stranger", DType::F64, &[5, 3]);
    assert!(matches!(error, CheckpointError::NoTensor { .. }), "{error}");
}

#[test]
fn a_tensor_is_received_by_one_operation_at_a_time() {
    let (folder, connector) = (folder(), Connector::local().unwrap());
    let (served, copy) = (served(folder.path(), &connector), folder.path().join("copy.safetensors"));
    let download = begin(&connector, &copy, &served);
    let offer = served.offer(["wide", "odd"]).wait().unwrap();
    let receiving = download.receive(offer.envelope());
    let error = download.receive(served.offer(["odd"]).wait().unwrap().envelope()).wait().unwrap_err();
    assert!(matches!(&error, CheckpointError::Busy { name } if name == "odd"), "{error}");
    receiving.wait().unwrap();
    assert!(!download.missing().contains(&"odd"));
}

#[test]
fn a_link_in_the_place_of_the_unfinished_file_is_not_followed() {
    let (folder, connector) = (folder(), Connector::local().unwrap());
    let served = served(folder.path(), &connector);
    let victim = folder.path().join("victim");
    fs::write(&victim, content(10, 1)).unwrap();
    std::os::unix::fs::symlink(&victim, folder.path().join(".copy.safetensors.part")).unwrap();
    let manifest = served.checkpoint().manifest().unwrap();
    let error =
        Download::begin(&connector, folder.path().join("copy.safetensors"), &manifest).wait().unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
    assert_eq!(fs::read(&victim).unwrap(), content(10, 1));
}

#[test]
fn what_no_disk_can_hold_is_an_error_at_the_start() {
    let (folder, connector) = (folder(), Connector::local().unwrap());
    let manifest = r#"{"version":1,"tensors":[{"name":"x","dtype":"U8","shape":[1125899906842624]}]}"#;
    let manifest = Manifest::from_json(manifest).unwrap();
    let error =
        Download::begin(&connector, folder.path().join("x.safetensors"), &manifest).wait().unwrap_err();
    assert!(matches!(error, CheckpointError::Io { action: "making room for", .. }), "{error}");
}

//! Runs every input that is kept, without a fuzzer.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Bytes, TARGETS, Target};

/// The workspace's `fuzz/`.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name)
}

/// The inputs kept for a target.
fn kept(folder: &Path, target: &Target) -> Vec<PathBuf> {
    let Ok(files) = fs::read_dir(folder.join(target.name)) else { return vec![] };
    files.map(|file| file.unwrap().path()).collect()
}

fn run(target: &Target, path: &Path) {
    let input = fs::read(path).unwrap();
    // A panic says why; this says where.
    println!("{} {}", target.name, path.display());
    (target.run)(&input);
}

#[test]
fn every_input_of_the_corpus_passes() {
    for target in TARGETS {
        let inputs = kept(&folder("corpus"), target);
        assert!(!inputs.is_empty(), "no corpus for {}", target.name);
        inputs.iter().for_each(|path| run(target, path));
    }
}

#[test]
fn every_input_that_once_failed_passes() {
    for target in TARGETS {
        kept(&folder("crashes"), target).iter().for_each(|path| run(target, path));
    }
}

#[test]
fn every_folder_belongs_to_a_target() {
    let mut names: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    if cfg!(not(feature = "safetensors")) {
        names.extend(["checkpoint_header", "checkpoint_manifest"].map(str::to_owned));
    }
    for part in ["corpus", "crashes"] {
        for entry in fs::read_dir(folder(part)).into_iter().flatten().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                let name = entry.file_name().into_string().unwrap();
                assert!(names.contains(&name), "{part}/{name} belongs to nobody");
            }
        }
    }
}

/// What coverage can't guide here: a few thousand damaged inputs of each corpus.
#[test]
fn damaged_inputs_of_the_corpus_pass() {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for target in TARGETS {
        let inputs: Vec<Vec<u8>> =
            kept(&folder("corpus"), target).iter().map(|path| fs::read(path).unwrap()).collect();
        for _ in 0..2_000 {
            let mut input = inputs[random() % inputs.len()].clone();
            for _ in 0..random() % 4 {
                if input.is_empty() {
                    break;
                }
                let at = random() % input.len();
                match random() % 4 {
                    0 => input.truncate(at),
                    1 => drop(input.remove(at)),
                    2 => input.insert(at, random() as u8),
                    _ => input[at] = random() as u8,
                }
            }
            (target.run)(&input);
        }
    }
}

#[test]
fn numbers_of_an_input_are_small_large_and_between() {
    assert_eq!(Bytes::new(&[7]).number(), 7);
    assert_eq!(Bytes::new(&[220, 63]).number(), (1 << 63) - 10);
    assert_eq!(Bytes::new(&[255; 9]).number(), u64::MAX);
    assert_eq!(Bytes::new(&[]).number(), 0);
}

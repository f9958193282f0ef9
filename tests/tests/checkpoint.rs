//! A checkpoint file served by one process to another: without loading it, and while the file is cut under it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use connect_core::checkpoint::{Checkpoint, Download, Manifest};
use connect_core::{Connector, TensorEnvelope};
use connect_tests::child::Worker;
use connect_tests::lab::{Lab, Transport};
use connect_tests::{pattern, process};
use serde_json::json;
use tempfile::TempDir;

connect_tests::for_each_transport!(
    a_gibibyte_is_served_from_disk_to_disk_without_being_loaded,
    a_download_goes_on_after_its_server_was_killed,
);

const MIB: u64 = 1 << 20;

/// By so much the server's own memory may grow while it serves a gibibyte.
const ANONYMOUS: u64 = 32 * MIB;

/// A checkpoint of tensors of so many bytes each, with the pattern in them, in a folder of its own.
fn checkpoint(tensors: &[u64]) -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.safetensors");
    let (mut entries, mut at) = (serde_json::Map::new(), 0);
    for (index, bytes) in tensors.iter().enumerate() {
        let entry = json!({"dtype": "U8", "shape": [bytes], "data_offsets": [at, at + bytes]});
        entries.insert(format!("tensor.{index}"), entry);
        at += bytes;
    }
    let header = serde_json::to_vec(&entries)?;
    let mut file = BufWriter::new(File::create(&path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (index, bytes) in tensors.iter().enumerate() {
        file.write_all(&pattern::bytes(*bytes as usize, index as u64))?;
    }
    file.flush()?;
    Ok((folder, path))
}

fn server(lab: &Lab, path: &Path, options: &[&str], environment: &[(&str, &str)]) -> Result<Worker> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.args(["--transport", &lab.transport().to_string()]).args(options).arg(path);
    Worker::ready({
        command.envs(environment.iter().copied());
        command
    })
}

fn manifest(server: &mut Worker) -> Result<Manifest> {
    let answer = server.ask(json!({"do": "manifest"}), "manifest")?;
    Ok(Manifest::from_json(answer["manifest"].as_str().context("a document")?)?)
}

/// What the server offers of these tensors, and the command that waits for its end.
fn offer<N: AsRef<str>>(server: &mut Worker, names: &[N]) -> Result<(u64, TensorEnvelope)> {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let id = server.send(json!({"do": "offer", "names": names}))?;
    let answer = server.expect(id, "offer")?;
    Ok((id, TensorEnvelope::from_json(answer["envelope"].as_str().context("a document")?)?))
}

/// Whether two files hold tensors of the same bytes.
fn check_equal(ours: &Path, theirs: &Path) -> Result<()> {
    let (ours, theirs) = (Checkpoint::open(ours)?, Checkpoint::open(theirs)?);
    ensure!(ours.tensors().count() == theirs.tensors().count());
    for tensor in ours.tensors() {
        ensure!(ours.read(&tensor.name)? == theirs.read(&tensor.name)?, "{} differs", tensor.name);
    }
    Ok(())
}

fn a_gibibyte_is_served_from_disk_to_disk_without_being_loaded(lab: &Lab) -> Result<()> {
    // Over the socket every byte is copied twice, and a part of them shows the same.
    let unit = if lab.transport() == Transport::LocalStream { MIB / 8 } else { MIB };
    let (folder, path) = checkpoint(&[256 * unit, 255 * unit + 777, 512 * unit, unit - 777])?;
    let mut server = server(lab, &path, &[], &[])?;
    let connector = lab.connector()?;
    let before = process::memory(server.pid(), "RssAnon")?;
    let copy = folder.path().join("copy.safetensors");
    let download = Download::begin(&connector, &copy, &manifest(&mut server)?).wait()?;
    for name in download.missing() {
        let (id, envelope) = offer(&mut server, &[name])?;
        download.receive(&envelope).wait()?;
        server.expect(id, "complete")?;
    }
    let after = process::memory(server.pid(), "RssAnon")?;
    let grown = after.saturating_sub(before);
    eprintln!("{}: the server's own memory grew by {grown} bytes, from {before}", lab.transport());
    ensure!(grown < ANONYMOUS, "the server's own memory grew by {grown} bytes");
    ensure!(download.progress().bytes == 1024 * unit);
    download.finish()?;
    check_equal(&path, &copy)
}

fn a_download_goes_on_after_its_server_was_killed(lab: &Lab) -> Result<()> {
    let (folder, path) = checkpoint(&[3 * MIB, 5 * MIB, 7 * MIB])?;
    let copy = folder.path().join("copy.safetensors");
    let mut first = server(lab, &path, &[], &[])?;
    let manifest = manifest(&mut first)?;
    {
        let connector = lab.connector()?;
        let download = Download::begin(&connector, &copy, &manifest).wait()?;
        let (_, envelope) = offer(&mut first, &["tensor.1"])?;
        download.receive(&envelope).wait()?;
        let (_, envelope) = offer(&mut first, &["tensor.0", "tensor.2"])?;
        first.kill();
        ensure!(download.receive(&envelope).wait().is_err());
        ensure!(download.missing() == ["tensor.0", "tensor.2"], "{:?}", download.missing());
    }
    let mut second = server(lab, &path, &[], &[])?;
    let connector = lab.connector()?;
    let download = Download::begin(&connector, &copy, &manifest).wait()?;
    ensure!(download.missing() == ["tensor.0", "tensor.2"], "{:?}", download.missing());
    let (_, envelope) = offer(&mut second, &download.missing())?;
    let report = download.receive(&envelope).wait()?;
    ensure!(report.bytes == 10 * MIB, "{} bytes travelled", report.bytes);
    download.finish()?;
    check_equal(&path, &copy)
}

/// A server whose file is cut after it was offered, and what the reader and the server say to that.
fn cut_under(lab: &Lab, options: &[&str], environment: &[(&str, &str)]) -> Result<(bool, bool)> {
    let (_folder, path) = checkpoint(&[8 * MIB, 8 * MIB])?;
    let mut server = server(lab, &path, options, environment)?;
    let connector = lab.connector()?.with_deadline(std::time::Duration::from_secs(20));
    let (_, envelope) = offer(&mut server, &["tensor.1"])?;
    OpenOptions::new().write(true).open(&path)?.set_len(2 * MIB)?;
    let read = read(&connector, &envelope);
    eprintln!("{}: {:?}", lab.transport(), read.as_ref().err());
    let arrived = read.is_ok_and(|bytes| pattern::first_difference(&bytes, 1).is_none());
    std::thread::sleep(std::time::Duration::from_millis(200));
    if server.is_alive() && options.is_empty() {
        let id = server.send(json!({"do": "offer", "names": ["tensor.0"]}))?;
        let answer = server.expect(id, "error")?;
        let message = answer["message"].as_str().unwrap_or_default();
        ensure!(message.contains("was changed since it was opened"), "{message}");
    }
    Ok((arrived, server.is_alive()))
}

fn read(connector: &Connector, envelope: &TensorEnvelope) -> Result<Vec<u8>> {
    let bytes = vec![0u8; envelope.metadata().total_bytes() as usize];
    Ok(connector.begin_read(envelope.metadata(), bytes).wait()?.wait_for_completion().wait()?.memory)
}

mod cut {
    use std::os::unix::process::ExitStatusExt;

    use connect_tests::lab;

    use super::*;

    fn of(transport: Transport) -> Option<Lab> {
        transport.is_available().then(|| Lab::new(transport, env!("CARGO_BIN_EXE_worker")))
    }

    #[test]
    fn a_file_cut_while_it_is_served_over_local_fails_the_transfer_and_nothing_else() -> Result<()> {
        for transport in [Transport::Local, Transport::LocalStream] {
            let (arrived, survived) = cut_under(&of(transport).context("local")?, &[], &[])?;
            ensure!(!arrived && survived, "{transport}: arrived {arrived}, survived {survived}");
        }
        Ok(())
    }

    /// The limit that the module's docs name: within one process the copy is an ordinary one.
    #[test]
    fn a_file_cut_while_its_own_process_reads_it_ends_that_process() -> Result<()> {
        const SIGBUS: i32 = 7;
        let (_folder, path) = checkpoint(&[8 * MIB, 8 * MIB])?;
        let mut server = server(&of(Transport::Local).context("local")?, &path, &[], &[])?;
        server.send(json!({"do": "cut", "path": path}))?;
        ensure!(process::eventually(lab::PATIENCE, || !server.is_alive()));
        let status = server.end()?;
        ensure!(status.signal() == Some(SIGBUS), "{status}");
        Ok(())
    }

    #[test]
    fn a_copy_is_served_whole_whatever_happens_to_the_file() -> Result<()> {
        for transport in Transport::available() {
            let (arrived, survived) = cut_under(&of(transport).context("available")?, &["--copy"], &[])?;
            ensure!(arrived && survived, "{transport}: arrived {arrived}, survived {survived}");
        }
        Ok(())
    }

    #[cfg(feature = "nixl")]
    #[test]
    fn a_file_cut_while_it_is_served_over_nixl_fails_the_transfer_and_over_tcp_ends_the_server() -> Result<()>
    {
        let Some(lab) = of(Transport::Nixl) else { return Ok(()) };
        // Over shared memory the kernel copies. Over TCP UCX itself reads the pages, and gets SIGBUS: the limit that the
        // module's docs name, with a copy as the remedy.
        for (tls, survives) in [("sm,self,tcp", true), ("tcp", false)] {
            let (arrived, survived) = cut_under(&lab, &[], &[("UCX_TLS", tls)])?;
            ensure!(!arrived && survived == survives, "{tls}: arrived {arrived}, survived {survived}");
        }
        Ok(())
    }
}

#[test]
fn the_file_of_the_test_is_what_the_test_says() -> Result<()> {
    let (_folder, path) = checkpoint(&[5, 1000])?;
    let mut bytes = Vec::new();
    BufReader::new(File::open(&path)?).read_to_end(&mut bytes)?;
    pattern::check(&bytes[bytes.len() - 1000..], 1);
    ensure!(fs::metadata(&path)?.len() == bytes.len() as u64);
    Ok(())
}

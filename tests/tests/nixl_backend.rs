//! Which engine NIXL uses, chosen by name and said in the report; and how long its agents live.
#![cfg(feature = "nixl")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use connect_core::transport::TransportError;
use connect_core::transport::nixl::NixlConfig;
use connect_core::{Connector, Error, Failed, RdmaMetadata};
use connect_tests::lab::PATIENCE;
use connect_tests::process::eventually;
use connect_tests::{pattern, require};

fn build(config: NixlConfig) -> std::result::Result<Connector, Error> {
    Connector::builder().nixl(config).build()
}

#[test]
fn ucx_is_the_default_and_the_report_says_so() {
    if !require::nixl() {
        return;
    }
    let (a, b) = (build(NixlConfig::default()).unwrap(), build(NixlConfig::default()).unwrap());
    assert_eq!((a.transport(), a.backend()), ("nixl", "UCX"));
    let offer = a.create_readable(vec![7u8; 100]).wait().unwrap();
    let received = b.begin_read(offer.metadata(), vec![0u8; 100]).wait().unwrap();
    let received = received.wait_for_completion().wait().unwrap();
    assert_eq!(received.memory, [7; 100]);
    assert_eq!(received.report.backend, "UCX");
    assert_eq!(offer.wait_for_completion().wait().unwrap().backend, "UCX");
}

#[test]
fn a_backend_takes_parameters() {
    if !require::nixl() {
        return;
    }
    let config = || NixlConfig::default().backend("UCX").param("num_workers", "2");
    let (a, b) = (build(config()).unwrap(), build(config()).unwrap());
    let offer = a.create_readable(vec![7u8; 100]).wait().unwrap();
    let received = b.begin_read(offer.metadata(), vec![0u8; 100]).wait().unwrap();
    assert_eq!(received.wait_for_completion().wait().unwrap().memory, [7; 100]);
    offer.wait_for_completion().wait().unwrap();
    // That they reach the plugin shows in one that it can't use.
    let refused = build(NixlConfig::default().param("num_workers", "many"));
    assert!(matches!(refused, Err(Error::Start { source: TransportError::Unavailable(_) })), "{refused:?}");
}

#[test]
fn a_backend_that_is_not_there_is_an_error_that_lists_those_that_are() {
    if !require::nixl() {
        return;
    }
    let error = build(NixlConfig::default().backend("NOPE")).expect_err("there is no such plugin");
    let message = error.to_string();
    assert!(message.contains("NOPE") && message.contains("UCX"), "{message}");
}

/// P8: NIXL takes no document back, but with the agent that made it all of its documents end.
#[test]
fn p8_a_document_ends_with_the_lifetime_of_its_agent() -> Result<()> {
    if !require::nixl() {
        return Ok(());
    }
    let lifetime = Duration::from_millis(300);
    let a = Connector::builder().nixl(NixlConfig::default().agent_lifetime(lifetime)).build()?;
    let b = Connector::builder().nixl(NixlConfig::default()).build()?;
    let content = Arc::new(pattern::bytes(5000, 1));
    let read = |metadata: &RdmaMetadata| {
        let read = b.begin_read(metadata, vec![0u8; 5000]).wait()?;
        Ok::<_, Failed<_>>(read.wait_for_completion().wait()?.memory)
    };
    // One that stays open, and so keeps its agent for as long.
    let open = a.create_readable(Arc::clone(&content)).wait()?;
    let taken = a.create_readable(Arc::clone(&content)).wait()?;
    pattern::check(&read(taken.metadata())?, 1);
    let replayed = taken.metadata().clone();
    taken.wait_for_completion().wait()?;
    std::thread::sleep(lifetime * 3);
    pattern::check(&read(open.metadata())?, 1);
    open.wait_for_completion().wait()?;

    let gone = || read(&replayed).is_err();
    assert!(eventually(PATIENCE, gone), "the document is still good");
    // New offers are as good as ever.
    let fresh = a.create_readable(Arc::clone(&content)).wait()?;
    pattern::check(&read(fresh.metadata())?, 1);
    fresh.wait_for_completion().wait()?;
    Ok(())
}

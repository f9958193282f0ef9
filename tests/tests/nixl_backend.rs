//! Which engine NIXL uses: chosen by name, with parameters, and said in the report.
#![cfg(feature = "nixl")]

use connect_core::transport::TransportError;
use connect_core::transport::nixl::NixlConfig;
use connect_core::{Connector, Error};
use connect_tests::require;

fn build(config: NixlConfig) -> Result<Connector, Error> {
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

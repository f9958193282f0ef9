//! Operations over memory of several kinds and on several devices: one operation to callers, driver and transport.

use std::time::{Duration, Instant};

use super::Script;
use crate::transport::TransportError;
use crate::{Connector, Descriptor, DescriptorMut, Device, Error, MemoryError, Recovered};

const DEVICES: [Device; 4] = [Device::CPU, Device::cuda(0), Device::cuda(1), Device::CPU];

/// Memory that is nowhere; no transport of these tests looks.
fn source(devices: &[Device]) -> Vec<Descriptor> {
    let one = |(index, device): (usize, &Device)| {
        // SAFETY: nobody reads it.
        unsafe { Descriptor::from_raw_parts(*device, 0x1000 * (index as u64 + 1), 16, ()) }.unwrap()
    };
    devices.iter().enumerate().map(one).collect()
}

fn target(devices: &[Device]) -> Vec<DescriptorMut> {
    let one = |(index, device): (usize, &Device)| {
        // SAFETY: nobody writes it.
        unsafe { DescriptorMut::from_raw_parts(*device, 0x9000 * (index as u64 + 1), 16, ()) }.unwrap()
    };
    devices.iter().enumerate().map(one).collect()
}

#[test]
fn memory_of_several_kinds_is_one_offer_and_one_transfer_with_its_devices_in_order() {
    let script = Script::default();
    let connector = script.connector();
    let offer = connector.create_readable(source(&DEVICES)).wait().unwrap();
    let named: Vec<Device> = offer.metadata().descriptors().iter().map(|one| one.device()).collect();
    assert_eq!(named, DEVICES);
    let here = [Device::cuda(1), Device::CPU, Device::cuda(1), Device::CPU];
    let read = connector.begin_read(offer.metadata(), target(&here)).wait().unwrap();
    let pairs: Vec<(Device, Device)> = here.into_iter().zip(DEVICES).collect();
    assert_eq!(*script.begun.lock().unwrap(), [pairs], "once, and with all of it");
    drop(read);
}

#[test]
fn p1_memory_of_several_kinds_is_parked_and_comes_free_as_one() {
    let script = Script::default();
    let connector = script.connector();
    let offer = connector.create_readable(source(&DEVICES)).wait().unwrap();
    let read = connector.begin_read(offer.metadata(), target(&DEVICES)).wait().unwrap();
    script.busy.store(true, std::sync::atomic::Ordering::SeqCst);
    let failed = read.cancel().wait().err().unwrap();
    assert!(matches!(failed.memory, Recovered::Parked), "{}", failed.error);
    assert_eq!((connector.stats().parked, connector.stats().parked_bytes), (1, 64));
    script.busy.store(false, std::sync::atomic::Ordering::SeqCst);
    let began = Instant::now();
    while connector.stats().parked > 0 {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_a_transport_can_t_reach_is_refused_at_creation_and_named() {
    let (local, script) = (Connector::local().unwrap(), Script::default());
    let refused = |error: &Error| match error {
        Error::Transport { source: TransportError::UnsupportedDevice { device, reason }, .. } => {
            assert_eq!(*device, Device::cuda(0));
            reason.clone()
        }
        other => panic!("{other}"),
    };
    let reason = refused(&local.create_readable(source(&DEVICES)).wait().unwrap_err());
    assert!(reason.starts_with("descriptor 1 of this side: ") && reason.contains("NIXL"), "{reason}");
    let failed = local.create_writable(target(&DEVICES)).wait().err().unwrap();
    assert!(matches!(failed.memory, Recovered::Returned(_)));
    refused(&failed.error);
    // And what the peer has, before it is asked for anything.
    let offer = script.connector().create_readable(source(&DEVICES)).wait().unwrap();
    let failed = local.begin_read(offer.metadata(), target(&[Device::CPU; 4])).wait().err().unwrap();
    let reason = refused(&failed.error);
    assert!(reason.starts_with("descriptor 1 of the peer: "), "{reason}");
}

#[test]
fn targets_overlap_on_one_device_only() {
    let overlapping = |device| {
        let at = |addr| {
            // SAFETY: nobody writes it.
            unsafe { DescriptorMut::from_raw_parts(device, addr, 16, ()) }.unwrap()
        };
        let mut targets = target(&DEVICES);
        targets.extend([at(0x9_0000), at(0x9_0008)]);
        Script::default().connector().create_writable(targets).wait()
    };
    let failed = overlapping(Device::cuda(1)).err().unwrap();
    assert!(matches!(failed.error, Error::Memory(MemoryError::Overlap { first: 4, second: 5 })));
}

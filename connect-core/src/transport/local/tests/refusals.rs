//! Who may not have what, and how that is said.

use super::*;

fn refusal(scene: &mut Scene, kind: OperationKind, key: &str) -> TransportError {
    let (local, remote) = (scene.own.regions(), scene.offered.regions());
    refusal_of(scene, kind, key, &local, &remote)
}

fn refusal_of(
    scene: &mut Scene,
    kind: OperationKind,
    key: &str,
    local: &[Region],
    remote: &[Region],
) -> TransportError {
    let (peer, _) = scene.client.connect(&scene.blob).unwrap();
    let id = scene.client.call_begin(&Transfer { peer, kind, local, remote, key }).unwrap();
    let error = scene.run(id).unwrap_err();
    assert_eq!(scene.client.release(id), Quiescence::Quiet);
    error
}

fn assert_refused(error: &TransportError, reason: &str) {
    assert!(matches!(error, TransportError::Refused(said) if said.contains(reason)), "{error}");
}

#[test]
fn an_unknown_key_a_wrong_direction_and_other_ranges_are_refused() {
    for way in WAYS {
        let mut scene = Scene::new(way, OperationKind::Read, &[100, 50]);
        let (read, write) = (OperationKind::Read, OperationKind::Write);
        assert_refused(&refusal(&mut scene, read, "guess"), "unknown, ended, or already taken");
        assert_refused(&refusal(&mut scene, write, KEY), "allows READ");
        let (local, remote) = (scene.own.regions(), scene.offered.regions());
        let outside = Region::new(Device::CPU, remote[0].addr() + 1, 100).unwrap();
        let error = refusal_of(&mut scene, read, KEY, &local, &[outside, remote[1]]);
        assert_refused(&error, "region 0 of the request is not on offer");
        let error = refusal_of(&mut scene, read, KEY, &[local[0], local[0]], &[remote[0], remote[0]]);
        assert_refused(&error, "not for the bytes on offer");
        // None of that used the offer up.
        let id = scene.begin();
        scene.run(id).unwrap();
        scene.assert_moved();
        scene.assert_notified();
    }
}

#[test]
fn a_write_brings_every_byte_or_is_refused_and_a_read_may_leave_some_out() {
    for way in WAYS {
        let mut scene = Scene::new(way, OperationKind::Write, &[100, 50]);
        let (local, remote) = (scene.own.regions(), scene.offered.regions());
        let error = refusal_of(&mut scene, OperationKind::Write, KEY, &local[..1], &remote[..1]);
        assert_refused(&error, "not for the bytes on offer");

        let mut scene = Scene::new(way, OperationKind::Read, &[100, 50]);
        let (local, remote) = (scene.own.regions(), scene.offered.regions());
        let (peer, _) = scene.client.connect(&scene.blob).unwrap();
        let part =
            Transfer { peer, kind: OperationKind::Read, local: &local[1..], remote: &remote[1..], key: KEY };
        let id = scene.client.call_begin(&part).unwrap();
        scene.run(id).unwrap();
        scene.assert_notified();
    }
}

#[test]
fn an_offer_is_taken_once() {
    for way in WAYS {
        let mut scene = Scene::new(way, OperationKind::Read, &[100]);
        let id = scene.begin();
        scene.run(id).unwrap();
        assert_refused(&refusal(&mut scene, OperationKind::Read, KEY), "already taken");
    }
}

#[test]
fn an_ended_offer_is_refused() {
    let mut scene = Scene::new(Way::Attach, OperationKind::Write, &[100]);
    assert_eq!(scene.server.end_offer(scene.offer, false), Quiescence::Quiet);
    assert_refused(&refusal(&mut scene, OperationKind::Write, KEY), "ended");
    assert!(scene.events.is_empty());
}

#[test]
fn a_second_request_on_a_running_offer_is_refused() {
    let mut scene = Scene::new(Way::Attach, OperationKind::Read, &[10_000_000]);
    let first = scene.begin();
    until(|| {
        (scene.serve() && scene.client.poll(first).is_ok() && !scene.client.client.copying.is_empty())
            .then_some(())
    });
    assert_refused(&refusal(&mut scene, OperationKind::Read, KEY), "another request");
    scene.run(first).unwrap();
    scene.assert_moved();
}

#[test]
fn a_key_can_be_offered_once_at_a_time() {
    let mut scene = Scene::new(Way::Direct, OperationKind::Read, &[8]);
    let regions = scene.offered.regions();
    let offer = Offer { kind: OperationKind::Read, regions: &regions, key: KEY };
    assert!(matches!(scene.server.call_offer(&offer), Err(TransportError::Protocol(_))));
    scene.server.end_offer(scene.offer, false);
    scene.server.call_offer(&offer).unwrap();
}

#[test]
fn memory_of_a_device_is_out_of_reach() {
    let mut transport = transport(LocalConfig::default(), "worker");
    assert_eq!(transport.check_device(Device::CPU), Ok(()));
    let regions = [Region::new(Device::cuda(0), 4096, 1).unwrap()];
    let offer = Offer { kind: OperationKind::Read, regions: &regions, key: KEY };
    let unsupported = |error| matches!(error, TransportError::UnsupportedDevice { .. });
    assert!(unsupported(transport.check_device(Device::cuda(0)).unwrap_err()));
    assert!(unsupported(transport.call_offer(&offer).unwrap_err()));
}

#[test]
fn a_transfer_whose_sides_differ_never_starts() {
    let mut scene = Scene::new(Way::Direct, OperationKind::Read, &[8, 8]);
    let (peer, _) = scene.client.connect(&scene.blob).unwrap();
    let (local, remote) = (scene.own.regions(), scene.offered.regions());
    let mut begin = |local: &[Region], remote: &[Region]| {
        let transfer = Transfer { peer, kind: OperationKind::Read, local, remote, key: KEY };
        scene.client.call_begin(&transfer)
    };
    assert!(matches!(begin(&local[..1], &remote), Err(TransportError::Protocol(_))));
    let shorter = [local[0], local[1].slice(0..7).unwrap()];
    assert!(matches!(begin(&shorter, &remote), Err(TransportError::Protocol(_))));
    assert!(matches!(begin(&[], &[]), Err(TransportError::Protocol(_))));
}

/// P4.
#[test]
fn a_restarted_peer_is_not_taken_for_its_predecessor() {
    let mut scene = Scene::new(Way::Direct, OperationKind::Read, &[8]);
    // The same socket, but metadata of an earlier incarnation.
    let mut address = Address::decode(&scene.blob).unwrap();
    address.incarnation = "0".into();
    let (peer, name) = scene.client.connect(&address.encode()).unwrap();
    assert_eq!(name, "server-0");
    let (local, remote) = (scene.own.regions(), scene.offered.regions());
    let transfer = Transfer { peer, kind: OperationKind::Read, local: &local, remote: &remote, key: KEY };
    let id = scene.client.call_begin(&transfer).unwrap();
    let error = scene.run(id).unwrap_err();
    assert!(matches!(&error, TransportError::PeerLost(said) if said.contains("server-1")), "{error}");
}

#[test]
fn metadata_of_another_host_is_refused() {
    let mut scene = Scene::new(Way::Direct, OperationKind::Read, &[8]);
    let mut address = Address::decode(&scene.blob).unwrap();
    address.host = "elsewhere".into();
    let error = scene.client.connect(&address.encode()).unwrap_err().to_string();
    assert!(error.contains("another host"), "{error}");
}

#[test]
fn workers_that_are_not_on_the_allow_list_are_refused_by_either_side() {
    let mut scene = Scene::new(Way::Direct, OperationKind::Read, &[8]);
    let mut wary = context("client", "1");
    wary.allowed_workers = Some(vec!["friend".into(), "serve".into()]);
    let mut client = LocalTransport::new(LocalConfig::default(), &wary).unwrap();
    assert_eq!(client.connect(&scene.blob), Err(TransportError::NotAllowed("server".into())));

    let mut wary = context("server", "1");
    wary.allowed_workers = Some(vec!["friend".into()]);
    scene.server = LocalTransport::new(LocalConfig::default(), &wary).unwrap();
    let regions = scene.offered.regions();
    let offer = Offer { kind: OperationKind::Read, regions: &regions, key: KEY };
    scene.blob = scene.server.call_offer(&offer).unwrap().1;
    let id = scene.begin();
    assert_refused(&scene.run(id).unwrap_err(), "allow-list");
}

#[test]
fn a_peer_that_is_gone_is_lost_and_nothing_hangs() {
    let mut scene = Scene::new(Way::Attach, OperationKind::Read, &[8]);
    let id = scene.begin();
    scene.server = transport(LocalConfig::default(), "other");
    assert!(matches!(scene.run(id), Err(TransportError::PeerLost(_))));
    assert_eq!(scene.client.release(id), Quiescence::Quiet);
    assert!(matches!(scene.client.connect(&scene.blob), Err(TransportError::PeerLost(_))));
}

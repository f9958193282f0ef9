//! Bytes arrive, in every way and shape, and both sides hear of it.

use super::*;

fn moves(way: Way, kind: OperationKind, sizes: &[usize]) {
    let mut scene = Scene::new(way, kind, sizes);
    let id = scene.begin();
    scene.run(id).unwrap();
    scene.assert_moved();
    scene.assert_notified();
    assert_eq!(scene.client.release(id), Quiescence::Quiet);
    assert_eq!(scene.server.end_offer(scene.offer, true), Quiescence::Quiet);
}

fn moves_every_way(sizes: &[usize]) {
    for way in WAYS {
        for kind in [OperationKind::Read, OperationKind::Write] {
            moves(way, kind, sizes);
        }
    }
}

#[test]
fn one_byte_moves() {
    moves_every_way(&[1]);
}

#[test]
fn many_unequal_regions_move() {
    let sizes: Vec<usize> = (0..3000).map(|i| 1 + (i * i) % 977).collect();
    moves_every_way(&sizes);
}

#[test]
fn more_than_a_slice_moves() {
    moves_every_way(&[64 * 1024 * 1024, 3, 5_000_001]);
}

#[test]
fn one_side_that_insists_on_streaming_is_enough() {
    for kind in [OperationKind::Read, OperationKind::Write] {
        for (ours, theirs) in [(Way::Direct, Way::Stream), (Way::Stream, Way::Attach)] {
            let mut scene = Scene::new(ours, kind, &[700_000, 5]);
            scene.client = transport(theirs.config(), "client");
            let id = scene.begin();
            scene.run(id).unwrap();
            scene.assert_moved();
        }
    }
}

#[test]
fn a_connector_can_be_its_own_peer() {
    for way in WAYS {
        let mut both = transport(way.config(), "both");
        let (mut from, mut to) = (Memory::pattern(&[9_000_000]), Memory::zeroed(&[9_000_000]));
        let regions = from.regions();
        let offer = Offer { kind: OperationKind::Read, regions: &regions, key: KEY };
        let (_, blob) = both.call_offer(&offer).unwrap();
        let (peer, _) = both.connect(&blob).unwrap();
        let transfer =
            Transfer { peer, kind: OperationKind::Read, local: &to.regions(), remote: &regions, key: KEY };
        let id = both.call_begin(&transfer).unwrap();
        let mut events = vec![];
        until(|| {
            both.progress(&mut events);
            (both.poll(id).unwrap() == TransferState::Complete).then_some(())
        });
        assert!(from.parts == to.parts);
        assert_eq!(events.len(), 1);
    }
}

#[test]
fn many_transfers_share_one_connection() {
    for way in WAYS {
        let mut server = transport(way.config(), "server");
        let mut client = transport(way.config(), "client");
        let mut running = vec![];
        let mut memory: Vec<(Memory, Memory)> =
            (0..40).map(|i| (Memory::pattern(&[200_000 + i]), Memory::zeroed(&[200_000 + i]))).collect();
        for (i, (from, to)) in memory.iter_mut().enumerate() {
            let (key, kind) =
                (i.to_string(), if i % 2 == 0 { OperationKind::Read } else { OperationKind::Write });
            let (from, to) = (from.regions(), to.regions());
            let (offered, local) = if kind == OperationKind::Read { (from, to) } else { (to, from) };
            let (_, blob) = server.call_offer(&Offer { kind, regions: &offered, key: &key }).unwrap();
            let (peer, _) = client.connect(&blob).unwrap();
            let transfer = Transfer { peer, kind, local: &local, remote: &offered, key: &key };
            running.push(client.call_begin(&transfer).unwrap());
        }
        let mut events = vec![];
        until(|| {
            server.progress(&mut events);
            running.retain(|&id| client.poll(id).unwrap() != TransferState::Complete);
            running.is_empty().then_some(())
        });
        assert!(memory.iter().all(|(from, to)| from.parts == to.parts));
        assert_eq!(events.len(), 40, "each offer notifies once");
        assert_eq!(client.client.conns.len(), 1);
    }
}

#[test]
fn two_threads_that_wait_for_events_get_done() {
    for way in WAYS {
        let (tell, told) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            let mut server = transport(way.config(), "server");
            let mut from = Memory::pattern(&[30_000_000]);
            let regions = from.regions();
            let offer = Offer { kind: OperationKind::Read, regions: &regions, key: KEY };
            let (_, blob) = server.call_offer(&offer).unwrap();
            tell.send((blob, regions)).unwrap();
            let mut events = vec![];
            while events.is_empty() {
                if !server.progress(&mut events) {
                    server.wait(Some(Duration::from_secs(20)));
                }
            }
            // The OK may still be on its way out.
            server.progress(&mut events);
            from
        });
        let (blob, regions) = told.recv().unwrap();
        let mut client = transport(way.config(), "client");
        let mut to = Memory::zeroed(&[30_000_000]);
        let (peer, _) = client.connect(&blob).unwrap();
        let transfer =
            Transfer { peer, kind: OperationKind::Read, local: &to.regions(), remote: &regions, key: KEY };
        let id = client.call_begin(&transfer).unwrap();
        let start = Instant::now();
        loop {
            let worked = client.progress(&mut vec![]);
            match client.poll(id).unwrap() {
                TransferState::Complete => break,
                TransferState::Pending { advanced } if advanced || worked => {}
                TransferState::Pending { .. } => client.wait(Some(Duration::from_secs(20))),
            }
        }
        assert!(start.elapsed() < Duration::from_secs(10), "a wait was not ended by its event");
        assert!(server.join().unwrap().parts == to.parts);
    }
}

#[test]
fn a_wake_before_the_wait_ends_it_and_only_it() {
    let mut transport = transport(LocalConfig::default(), "sleeper");
    (transport.waker())();
    transport.progress(&mut vec![]);
    let start = Instant::now();
    transport.wait(Some(Duration::from_secs(20)));
    assert!(start.elapsed() < Duration::from_secs(10));
    let start = Instant::now();
    transport.progress(&mut vec![]);
    transport.wait(Some(Duration::from_millis(30)));
    assert!(start.elapsed() >= Duration::from_millis(30), "the wake-up counted twice");
}

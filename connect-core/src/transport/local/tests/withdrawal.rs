//! Either side gives up in the middle: memory is busy exactly as long as it can be touched (P1), and what one
//! client left another one can take.

use super::*;

const SIZE: usize = 20_000_000;

/// Steps until the client has begun to receive or copy, or the server to pull.
fn under_way(way: Way, kind: OperationKind) -> (Scene, TransferId) {
    let mut scene = Scene::new(way, kind, &[SIZE]);
    let id = scene.begin();
    until(|| {
        scene.serve();
        scene.client.poll(id).unwrap();
        let (offered, own) = (&scene.offered.parts[0], &scene.own.parts[0]);
        (offered[..100_000] == own[..100_000]).then_some(())
    });
    assert!(scene.offered.parts != scene.own.parts, "already done");
    (scene, id)
}

fn server_quiet(scene: &mut Scene) {
    until(|| {
        scene.serve();
        scene.client.progress(&mut vec![]);
        (scene.server.offer_is_quiet(scene.offer) == Quiescence::Quiet).then_some(())
    });
}

fn client_quiet(scene: &mut Scene, id: TransferId) {
    until(|| {
        scene.serve();
        (scene.client.release(id) == Quiescence::Quiet).then_some(())
    });
}

#[test]
fn an_offer_withdrawn_while_a_client_copies_is_busy_until_the_client_stops() {
    let (mut scene, id) = under_way(Way::Attach, OperationKind::Read);
    assert_eq!(scene.server.end_offer(scene.offer, false), Quiescence::Busy);
    assert_eq!(
        scene.server.end_offer(scene.offer, false),
        Quiescence::Busy,
        "ending it again changes nothing"
    );
    scene.serve();
    assert_eq!(scene.server.offer_is_quiet(scene.offer), Quiescence::Busy, "the client was not heard yet");
    let error = scene.run(id).unwrap_err();
    assert!(matches!(&error, TransportError::Refused(said) if said.contains("withdrawn")), "{error}");
    server_quiet(&mut scene);
    assert!(scene.events.is_empty());
}

#[test]
fn an_offer_withdrawn_under_a_client_of_this_process_is_quiet_at_once() {
    let (mut scene, id) = under_way(Way::Direct, OperationKind::Read);
    assert_eq!(scene.server.end_offer(scene.offer, false), Quiescence::Quiet);
    scene.offered.parts[0].fill(0);
    assert!(matches!(scene.run(id), Err(TransportError::Refused(_))));
    assert!(scene.events.is_empty());
}

#[test]
fn a_target_withdrawn_is_quiet_at_once_and_written_no_more() {
    for way in WAYS {
        let (mut scene, id) = under_way(way, OperationKind::Write);
        assert_eq!(scene.server.end_offer(scene.offer, false), Quiescence::Quiet);
        scene.offered.parts[0].fill(0);
        let error = scene.run(id).unwrap_err();
        assert!(matches!(error, TransportError::Refused(_)), "{way:?}: {error}");
        client_quiet(&mut scene, id);
        assert!(scene.offered.parts[0].iter().all(|byte| *byte == 0), "{way:?}");
        assert!(scene.events.is_empty());
    }
}

#[test]
fn a_source_withdrawn_while_it_streams_is_busy_until_the_frame_is_out() {
    let mut scene = Scene::new(Way::Stream, OperationKind::Read, &[SIZE]);
    let id = scene.begin();
    // Greeting and request, until the socket is full with a frame cut in the middle.
    until(|| {
        scene.serve();
        scene.client.progress(&mut vec![]);
        (scene.own.parts[0][0] != 0).then_some(())
    });
    until(|| (!scene.serve()).then_some(()));
    assert_eq!(scene.server.end_offer(scene.offer, false), Quiescence::Busy);
    assert!(matches!(scene.run(id), Err(TransportError::Refused(_))));
    server_quiet(&mut scene);
}

#[test]
fn a_read_given_up_is_quiet_at_once_and_its_offer_can_be_taken_again() {
    for way in WAYS {
        let (mut scene, id) = under_way(way, OperationKind::Read);
        assert_eq!(scene.client.release(id), Quiescence::Quiet, "{way:?}");
        scene.own.parts[0].fill(0);
        for _ in 0..200 {
            scene.serve();
            scene.client.progress(&mut vec![]);
        }
        assert!(scene.own.parts[0].iter().all(|byte| *byte == 0), "{way:?}");
        scene.assert_let_go();
        let id = scene.begin();
        scene.run(id).unwrap();
        scene.assert_moved();
        scene.assert_notified();
    }
}

#[test]
fn a_write_given_up_is_busy_while_the_server_may_read() {
    for way in WAYS {
        let (mut scene, id) = under_way(way, OperationKind::Write);
        let first = scene.client.release(id);
        match way {
            Way::Direct => assert_eq!(first, Quiescence::Quiet),
            Way::Attach => assert_eq!(first, Quiescence::Busy),
            Way::Stream => {}
        }
        client_quiet(&mut scene, id);
        until(|| (!scene.serve()).then_some(()));
        scene.assert_let_go();
        assert!(scene.events.is_empty(), "{way:?}: given up, yet complete");
        let id = scene.begin();
        scene.run(id).unwrap();
        scene.assert_moved();
        scene.assert_notified();
    }
}

#[test]
fn a_transfer_released_before_the_peer_said_welcome_is_quiet() {
    let mut scene = Scene::new(Way::Attach, OperationKind::Write, &[8]);
    let id = scene.begin();
    assert_eq!(scene.client.release(id), Quiescence::Quiet);
    scene.serve();
    assert!(scene.events.is_empty());
}

#[test]
fn an_offer_whose_client_vanished_can_be_taken_by_another() {
    for way in WAYS {
        for kind in [OperationKind::Read, OperationKind::Write] {
            let (mut scene, _) = under_way(way, kind);
            scene.client = transport(way.config(), "client");
            let id = scene.begin();
            scene.run(id).unwrap();
            scene.assert_lost();
            scene.assert_moved();
            scene.assert_notified();
        }
    }
}

#[test]
fn a_grant_whose_client_vanished_is_quiet() {
    let (mut scene, _) = under_way(Way::Attach, OperationKind::Read);
    assert_eq!(scene.server.end_offer(scene.offer, false), Quiescence::Busy);
    scene.client = transport(Way::Attach.config(), "client");
    server_quiet(&mut scene);
}

/// The last byte is copied, but the client gave up and reused the memory before the server had read so.
#[test]
fn a_write_given_up_just_before_its_last_byte_is_copied_is_not_complete() {
    let mut scene = Scene::new(Way::Attach, OperationKind::Write, &[3_000_000]);
    let id = scene.begin();
    until(|| (scene.serve() && scene.client.progress(&mut vec![])).then_some(()));
    let LocalTransport { server, node, .. } = &mut scene.server;
    let token = *server.conns.keys().next().unwrap();
    assert!(server.pump(node, token, &mut scene.events), "the request is there");
    assert!(server.has_pulls());
    assert_eq!(scene.client.release(id), Quiescence::Busy);
    scene.own.parts[0].fill(0xee);
    assert!(server.pull(node, &mut scene.events));
    assert!(scene.offered.parts[0].iter().all(|byte| *byte == 0xee), "it was copied");
    client_quiet(&mut scene, id);
    scene.assert_let_go();
    assert!(scene.events.is_empty(), "and yet it is not complete");
    scene.own = Memory::pattern(&[3_000_000]);
    let id = scene.begin();
    scene.run(id).unwrap();
    scene.assert_moved();
    scene.assert_notified();
}

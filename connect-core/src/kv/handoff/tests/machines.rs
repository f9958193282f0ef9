//! The two state machines against each other, over a network that loses, repeats and reorders, and clocks that jump.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use uuid::Uuid;

use super::super::message::{Id, Says};
use super::super::owner::{self, Outcome, Owner};
use super::super::taker::{self, Taker, Verdict};

const LEASE: Duration = Duration::from_secs(30);

struct World {
    owner: Owner,
    taker: Taker,
    now: Instant,
    /// Said and not arrived: to the owner, or to the taker.
    to_owner: Vec<Says>,
    to_taker: Vec<Says>,
    outcomes: HashMap<Id, Outcome>,
    verdicts: HashMap<Id, Verdict>,
    /// Withdrawn, and not quiet yet.
    busy: Vec<Id>,
}

impl World {
    fn new() -> Self {
        Self {
            owner: Owner::new(LEASE),
            taker: Taker::default(),
            now: Instant::now(),
            to_owner: Vec::new(),
            to_taker: Vec::new(),
            outcomes: HashMap::new(),
            verdicts: HashMap::new(),
            busy: Vec::new(),
        }
    }

    fn own(&mut self, event: owner::Event) {
        for action in self.owner.on(self.now, event) {
            match action {
                owner::Action::Say(to, says) => {
                    assert_eq!(to, "taker");
                    if let Says::Aborted { id, .. } = says {
                        assert!(!self.busy.contains(&id), "an abort is answered when nobody is at it");
                    }
                    self.to_taker.push(says);
                }
                owner::Action::Withdraw(id) => self.busy.push(id),
                owner::Action::End(id, outcome) => {
                    assert_eq!(self.outcomes.insert(id, outcome), None, "it ends once");
                }
            }
        }
    }

    fn take(&mut self, event: taker::Event) {
        for action in self.taker.on(self.now, event) {
            match action {
                taker::Action::Say(to, says) => {
                    assert_eq!(to, "owner");
                    self.to_owner.push(says);
                }
                taker::Action::Read(..) => {}
                taker::Action::End(id, verdict) => {
                    assert_eq!(self.verdicts.insert(id, verdict), None, "it ends once");
                    if verdict == Verdict::Committed {
                        assert_eq!(
                            self.outcomes.get(&id),
                            Some(&Outcome::Delivered),
                            "blocks that were given up"
                        );
                    }
                }
            }
        }
    }

    fn tick(&mut self) {
        self.own(owner::Event::Tick);
        self.take(taker::Event::Tick);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Begin,
    Done(u8),
    Abort(u8),
    Withdraw(u8),
    Fail(u8),
    Quiet(u8),
    /// The nth message arrives, at one side.
    Arrive(bool, u8),
    Lose(bool, u8),
    Repeat(bool, u8),
    /// Hundredths of a lease pass; both sides look, or one of them is stopped meanwhile.
    Pass(u16, bool, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = any::<u8>;
    let step = prop_oneof![
        2 => Just(Step::Begin),
        3 => n().prop_map(Step::Done),
        1 => n().prop_map(Step::Abort),
        1 => n().prop_map(Step::Withdraw),
        1 => n().prop_map(Step::Fail),
        3 => n().prop_map(Step::Quiet),
        12 => (any::<bool>(), n()).prop_map(|(to, at)| Step::Arrive(to, at)),
        2 => (any::<bool>(), n()).prop_map(|(to, at)| Step::Lose(to, at)),
        1 => (any::<bool>(), n()).prop_map(|(to, at)| Step::Repeat(to, at)),
        5 => (0u16..150, any::<bool>(), any::<bool>()).prop_map(|(time, a, b)| Step::Pass(time, a, b)),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    /// Nothing is used that its owner did not hold until it was asked; each ends once; and with time each does.
    #[test]
    fn p2_p6_hand_offs_end_and_nothing_is_used_that_was_given_up(steps in steps()) {
        let mut world = World::new();
        let mut ids: Vec<Id> = Vec::new();
        let pick = |ids: &[Id], at: u8| (!ids.is_empty()).then(|| ids[at as usize % ids.len()]);
        for step in steps {
            match step {
                Step::Begin => {
                    let id = Uuid::from_u128(ids.len() as u128 + 1);
                    ids.push(id);
                    world.owner.open(world.now, id);
                    world.taker.track(world.now, id, "owner".to_owned(), LEASE, 1);
                }
                Step::Done(at) => { if let Some(id) = pick(&ids, at) { world.take(taker::Event::Done(id)); } }
                Step::Abort(at) => { if let Some(id) = pick(&ids, at) { world.take(taker::Event::Abort(id)); } }
                Step::Withdraw(at) => { if let Some(id) = pick(&ids, at) { world.own(owner::Event::Withdraw(id)); } }
                Step::Fail(at) => { if let Some(id) = pick(&ids, at) { world.own(owner::Event::Failed(id)); } }
                Step::Quiet(at) => {
                    if let Some(id) = pick(&world.busy, at) {
                        world.busy.retain(|other| *other != id);
                        world.own(owner::Event::Quiet(id));
                    }
                }
                Step::Arrive(true, at) if !world.to_owner.is_empty() => {
                    let at = at as usize % world.to_owner.len();
                    let says = world.to_owner.remove(at);
                    world.own(owner::Event::Heard("taker".to_owned(), says));
                }
                Step::Arrive(false, at) if !world.to_taker.is_empty() => {
                    let at = at as usize % world.to_taker.len();
                    let says = world.to_taker.remove(at);
                    world.take(taker::Event::Heard("owner".to_owned(), says));
                }
                Step::Lose(to_owner, at) | Step::Repeat(to_owner, at) => {
                    let queue = if to_owner { &mut world.to_owner } else { &mut world.to_taker };
                    if !queue.is_empty() {
                        let at = at as usize % queue.len();
                        if matches!(step, Step::Lose(..)) { queue.remove(at); } else { queue.push(queue[at].clone()); }
                    }
                }
                Step::Arrive(..) => {}
                Step::Pass(hundredths, owner_looks, taker_looks) => {
                    world.now += LEASE * u32::from(hundredths) / 100;
                    if owner_looks { world.own(owner::Event::Tick); }
                    if taker_looks { world.take(taker::Event::Tick); }
                }
            }
        }
        // The network is gone; two leases later everything has ended, on both sides.
        world.now += LEASE + LEASE;
        world.tick();
        for id in ids {
            prop_assert!(world.outcomes.contains_key(&id) && world.verdicts.contains_key(&id));
        }
        prop_assert_eq!(world.owner.leases(), 0);
        prop_assert_eq!(world.taker.next(), None);
    }
}

#[test]
fn nobody_speaks_for_a_hand_off_of_somebody_else() {
    let mut world = World::new();
    let id = Uuid::from_u128(1);
    world.owner.open(world.now, id);
    world.own(owner::Event::Heard("taker".to_owned(), Says::Beats { beats: vec![(id, 0)] }));
    let heard =
        |world: &mut World, says| world.owner.on(world.now, owner::Event::Heard("thief".to_owned(), says));
    assert_eq!(
        heard(&mut world, Says::Done { id }),
        [owner::Action::Say("thief".to_owned(), Says::Late { id })]
    );
    heard(&mut world, Says::Abort { id, generation: 1 });
    assert_eq!(world.owner.leases(), 1, "it goes on");
    // And a taker does not listen to strangers.
    world.taker.track(world.now, id, "owner".to_owned(), LEASE, 1);
    world.take(taker::Event::Done(id));
    assert!(world.taker.on(world.now, taker::Event::Heard("thief".to_owned(), Says::Ok { id })).is_empty());
    assert!(world.taker.on(world.now, taker::Event::Heard("thief".to_owned(), Says::Late { id })).is_empty());
}

#[test]
fn an_answer_to_an_earlier_abort_is_ignored() {
    let mut world = World::new();
    let id = Uuid::from_u128(1);
    world.taker.track(world.now, id, "owner".to_owned(), LEASE, 1);
    world.take(taker::Event::Abort(id));
    world.take(taker::Event::Abort(id));
    world.take(taker::Event::Heard("owner".to_owned(), Says::Aborted { id, generation: 1 }));
    assert!(world.verdicts.is_empty());
    world.take(taker::Event::Heard("owner".to_owned(), Says::Aborted { id, generation: 2 }));
    assert_eq!(world.verdicts[&id], Verdict::Aborted);
}

//! What goes wrong, and when: [`Plan`].

use std::time::Duration;

use super::Control;
use super::faulty::Faulty;
use crate::clock::Clock;
#[cfg(test)]
use crate::transport::Transport;
use crate::transport::local::LocalConfig;
use crate::transport::{TransportError, TransportFactory};

/// A call of a transport that can fail or block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Call {
    /// Memory is offered.
    Offer,
    /// A peer is made known.
    Connect,
    /// A transfer is prepared.
    Begin,
    /// A transfer is looked at and moved on.
    Poll,
}

/// For how long something is held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// So many times that the driver asks.
    Times(u32),
    /// This long.
    For(Duration),
}

/// What goes wrong with a transport, and when. See the [module](super).
///
/// Calls, transfers, ends and notifications are counted from 1, each kind by itself, over the life of the
/// connector. Where several faults meet, all of them happen.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub(super) script: Vec<Fault>,
    pub(super) random: Option<fastrand::Rng>,
}

#[derive(Debug, Clone)]
pub(super) enum Fault {
    Fail(Call, u64, TransportError),
    Block(Call, u64, Duration),
    Stall(u64, Hold),
    Busy(u64, Hold),
    Letter(u64, Post),
}

/// What becomes of a notification.
#[derive(Debug, Clone, Copy)]
pub(super) enum Post {
    Lose,
    Duplicate,
    Delay(Duration),
    /// Comes after the one that follows it.
    Reorder,
}

impl Plan {
    /// Nothing goes wrong.
    pub fn new() -> Self {
        Self::default()
    }

    /// What goes wrong is decided by chance, the same for the same calls and seed: one in 20 offers, connects
    /// and begins fails, and one in 200 polls; one in 10 transfers stalls, and one in 5 ends is busy, for up to
    /// 20 ms; one in 10 notifications each is lost, doubled, late, or overtaken by the next; one in 10 is
    /// followed by one that is nobody's.
    pub fn random(seed: u64) -> Self {
        Self { random: Some(fastrand::Rng::with_seed(seed)), ..Self::default() }
    }

    /// The `nth` call of this kind fails with `error`, and never reaches the wrapped transport.
    pub fn fail(self, call: Call, nth: u64, error: TransportError) -> Self {
        self.and(Fault::Fail(call, nth, error))
    }

    /// The `nth` call of this kind blocks the driver's thread for so long first, as no transport should.
    pub fn block(self, call: Call, nth: u64, time: Duration) -> Self {
        self.and(Fault::Block(call, nth, time))
    }

    /// The `nth` transfer does not move for so long.
    pub fn stall(self, nth: u64, hold: Hold) -> Self {
        self.and(Fault::Stall(nth, hold))
    }

    /// The `nth` operation to end, offers and transfers counted together, is called busy for at least so long.
    /// Offers that end with their notification, and transfers that are complete, count but are quiet at once.
    pub fn busy(self, nth: u64, hold: Hold) -> Self {
        self.and(Fault::Busy(nth, hold))
    }

    /// The `nth` notification is lost.
    pub fn lose(self, nth: u64) -> Self {
        self.and(Fault::Letter(nth, Post::Lose))
    }

    /// The `nth` notification comes twice.
    pub fn duplicate(self, nth: u64) -> Self {
        self.and(Fault::Letter(nth, Post::Duplicate))
    }

    /// The `nth` notification comes this much later.
    pub fn delay(self, nth: u64, time: Duration) -> Self {
        self.and(Fault::Letter(nth, Post::Delay(time)))
    }

    /// The `nth` notification comes after the one that follows it.
    pub fn reorder(self, nth: u64) -> Self {
        self.and(Fault::Letter(nth, Post::Reorder))
    }

    /// A factory for [`ConnectorBuilder::transport`](crate::ConnectorBuilder::transport) that wraps what
    /// `inner` makes, and the control over it. `LocalConfig` and `NixlConfig` have a `factory()`.
    pub fn over(self, inner: TransportFactory) -> (TransportFactory, Control) {
        let control = Control::default();
        let steered = control.clone();
        let factory: TransportFactory =
            Box::new(move |context| Ok(Box::new(Faulty::new(inner(context)?, self, Clock::Real, steered))));
        (factory, control)
    }

    /// The same over the embedded transport with its defaults.
    pub fn over_local(self) -> (TransportFactory, Control) {
        self.over(LocalConfig::default().factory())
    }

    fn and(mut self, fault: Fault) -> Self {
        self.script.push(fault);
        self
    }

    fn chance(&mut self, n: u64) -> bool {
        self.random.as_mut().is_some_and(|random| random.u64(..n) == 0)
    }

    fn some_time(&mut self) -> Duration {
        Duration::from_micros(self.random.as_mut().map_or(0, |random| random.u64(..20_000)))
    }

    /// How long the `nth` call of this kind blocks, and how it fails.
    pub(super) fn call(&mut self, call: Call, nth: u64) -> (Option<Duration>, Option<TransportError>) {
        let (mut time, mut error) = (None, None);
        for fault in &self.script {
            match fault {
                Fault::Block(kind, n, longest) if *kind == call && *n == nth => time = Some(*longest),
                Fault::Fail(kind, n, cause) if *kind == call && *n == nth => error = Some(cause.clone()),
                _ => {}
            }
        }
        if self.chance(if call == Call::Poll { 200 } else { 20 }) {
            error.get_or_insert(TransportError::Engine { call: "fault", status: format!("{call:?} {nth}") });
        }
        (time, error)
    }

    pub(super) fn stall_of(&mut self, nth: u64) -> Option<Hold> {
        let planned = self.script.iter().find_map(|fault| match fault {
            Fault::Stall(n, hold) if *n == nth => Some(*hold),
            _ => None,
        });
        planned.or_else(|| self.chance(10).then(|| Hold::For(self.some_time())))
    }

    pub(super) fn busy_of(&mut self, nth: u64) -> Option<Hold> {
        let planned = self.script.iter().find_map(|fault| match fault {
            Fault::Busy(n, hold) if *n == nth => Some(*hold),
            _ => None,
        });
        planned.or_else(|| self.chance(5).then(|| Hold::For(self.some_time())))
    }

    pub(super) fn post_of(&mut self, nth: u64) -> Vec<Post> {
        let planned = self.script.iter().filter_map(|fault| match fault {
            Fault::Letter(n, post) if *n == nth => Some(*post),
            _ => None,
        });
        let mut posts: Vec<Post> = planned.collect();
        if self.chance(10) {
            posts.push(Post::Lose);
        }
        if self.chance(10) {
            posts.push(Post::Duplicate);
        }
        if self.chance(10) {
            posts.push(Post::Delay(self.some_time()));
        }
        if self.chance(10) {
            posts.push(Post::Reorder);
        }
        posts
    }

    /// Whether a notification that is nobody's follows.
    pub(super) fn stray(&mut self) -> bool {
        self.chance(10)
    }

    /// For the model, whose time is virtual.
    #[cfg(test)]
    pub(crate) fn around(self, inner: Box<dyn Transport>, clock: &Clock) -> (Box<dyn Transport>, Control) {
        let control = Control::default();
        (Box::new(Faulty::new(inner, self, clock.clone(), control.clone())), control)
    }
}

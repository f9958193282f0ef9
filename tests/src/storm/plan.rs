//! [`Plan`]: everything that is decided about a round before it begins. It follows from the seed and the
//! round's number alone.

use std::time::Duration;

use super::Way;
use super::random::Random;
use super::trigger::{Fate, Point};

/// Who does what in an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// The survivor reads what the victim offers.
    WeRead,
    /// The survivor writes what the victim offers.
    WeWrite,
    /// The victim reads what the survivor offers.
    TheyRead,
    /// The victim writes what the survivor offers.
    TheyWrite,
}

impl Deed {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::WeRead, Self::WeWrite, Self::TheyRead, Self::TheyWrite];

    /// What a storm over this transport is made of.
    ///
    /// Over TCP no victim reads from the survivor. UCX answers such reads itself, and where the reader dies
    /// meanwhile it ends the process that it serves (seen with the UCX of NIXL 1.5.1): with "Fatal: unexpected
    /// error: Endpoint timeout" out of `ucp_get_req_handler`, or by a segmentation fault out of
    /// `uct_tcp_ep_pending_purge`. Nothing on our side of NIXL can prevent that. `--reads` shows it.
    pub fn of(way: Way, reads: bool) -> &'static [Self] {
        match way {
            Way::NixlTcp if !reads => &[Self::WeRead, Self::WeWrite, Self::TheyWrite],
            _ => &Self::ALL,
        }
    }

    /// Whether the survivor is the active side.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::WeRead | Self::WeWrite)
    }

    /// What the victim is told to do.
    pub fn command(self) -> &'static str {
        match self {
            Self::WeRead => "readable",
            Self::WeWrite => "writable",
            Self::TheyRead => "read",
            Self::TheyWrite => "write",
        }
    }

    /// The survivor's operation.
    pub fn name(self) -> &'static str {
        match self {
            Self::WeRead => "read",
            Self::WeWrite => "write",
            Self::TheyRead => "readable",
            Self::TheyWrite => "writable",
        }
    }
}

/// One operation between survivor and victim.
#[derive(Debug, Clone)]
pub struct Op {
    /// Who does what.
    pub deed: Deed,
    /// Lengths of its pieces.
    pub lengths: Vec<usize>,
    /// Seed of the pattern.
    pub seed: u64,
    /// The survivor's deadline.
    pub deadline: Duration,
    /// The victim's.
    pub their_deadline: Duration,
    /// The survivor gives up after this time.
    pub cancel: Option<Duration>,
}

/// When the victim ends.
#[derive(Debug, Clone, Copy)]
pub enum Moment {
    /// Both sides know of the offers; nobody has used one.
    BeforeUse,
    /// This long after the operations began.
    After(Duration),
    /// By its own hand, the n-th time it passes this point.
    At(Point, u64),
    /// This long after it was told to shut down, with the operations under way.
    InShutdown(Duration),
}

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// `SIGKILL`.
    Kill,
    /// `SIGSTOP`, and `SIGKILL` this long after.
    StopKill(Duration),
    /// `SIGSTOP`, and `SIGCONT` this long after.
    StopContinue(Duration),
}

impl End {
    /// The first signal.
    pub fn fate(self) -> Fate {
        if self == Self::Kill { Fate::Kill } else { Fate::Stop }
    }
}

/// A round.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its number.
    pub number: u64,
    /// Whether the two have done something before: if not, they are still to connect.
    pub warm: bool,
    /// The operations under way.
    pub ops: Vec<Op>,
    /// When the victim ends.
    pub moment: Moment,
    /// How.
    pub end: End,
    /// Whether the survivor's memory is kept and watched after its end, or freed in earnest.
    pub keeps: bool,
    /// A name that earlier victims had too; random if `None`.
    pub name: Option<String>,
}

const POINTS: [Point; 14] = [
    Point::Offered,
    Point::Connect,
    Point::Connected,
    Point::Begun,
    Point::Poll,
    Point::Moved,
    Point::Complete,
    Point::Progress,
    Point::Answered,
    Point::Notified,
    Point::Release,
    Point::EndOffer,
    Point::Closing,
    Point::Closed,
];

impl Plan {
    /// Round `number` of the storm with this seed.
    pub fn new(seed: u64, number: u64, way: Way, deeds: &[Deed]) -> Self {
        let random = &mut Random::new(seed, number);
        let moment = match random.between(0, 19) {
            0..2 => Moment::BeforeUse,
            2..8 => Moment::After(Duration::from_micros(random.magnitude(1, 30_000))),
            8..18 => {
                let point = random.pick(&POINTS);
                Moment::At(point, random.magnitude(1, most_passes(point)))
            }
            _ => Moment::InShutdown(Duration::from_micros(random.magnitude(1, 5_000))),
        };
        let (shortest, longest) = match way {
            Way::Local | Way::LocalStream => (100, 400),
            Way::Nixl => (200, 800),
            Way::NixlTcp => (300, 1000),
        };
        let least = if way.is_nixl() { 4 } else { 2 };
        let warm = !random.once_in(3);
        let mut ops: Vec<Op> = (0..random.between(least, least + 4))
            .map(|_| op(random, way, deeds, shortest, longest))
            .collect();
        if let Moment::At(point, _) = moment
            && let Some(passing) = deeds_that_pass(point)
        {
            let passing: Vec<Deed> = passing.iter().copied().filter(|deed| deeds.contains(deed)).collect();
            // Half of them at least lead there.
            ops.iter_mut().step_by(2).for_each(|op| op.deed = random.pick(&passing));
        }
        // Before and beyond the deadlines of its peers.
        let hold = Duration::from_millis(random.magnitude(1, longest * 3 / 2));
        let end = match random.between(0, 9) {
            0..5 => End::Kill,
            5..7 => End::StopKill(hold),
            _ => End::StopContinue(hold),
        };
        let name = random.once_in(2).then(|| format!("victim-{}", number % 4));
        Self { number, warm, ops, moment, end, keeps: !random.once_in(4), name }
    }
}

/// How often a few operations pass a point, roughly.
fn most_passes(point: Point) -> u64 {
    match point {
        Point::Poll | Point::Progress | Point::Answered => 30,
        Point::Moved | Point::Closing | Point::Closed => 6,
        _ => 2,
    }
}

/// What must go on for a victim to pass a point at all.
fn deeds_that_pass(point: Point) -> Option<&'static [Deed]> {
    match point {
        Point::Offered | Point::Notified | Point::EndOffer => Some(&[Deed::WeRead, Deed::WeWrite]),
        Point::Progress | Point::Answered | Point::Closing | Point::Closed => None,
        _ => Some(&[Deed::TheyRead, Deed::TheyWrite]),
    }
}

fn op(random: &mut Random, way: Way, deeds: &[Deed], shortest: u64, longest: u64) -> Op {
    // A large one takes some milliseconds, and several slices of either transport.
    let total = match random.between(0, 9) {
        0..4 => random.magnitude(1, 64 << 10),
        4..8 => random.magnitude(64 << 10, 2 << 20),
        // One slice over NIXL is 16 MiB.
        _ if way.is_nixl() => random.magnitude(2 << 20, 40 << 20),
        _ => random.magnitude(2 << 20, 12 << 20),
    };
    let pieces = if random.once_in(2) { 1 } else { random.between(2, 6) };
    let length = (total / pieces).max(1) as usize;
    Op {
        deed: random.pick(deeds),
        lengths: vec![length; pieces as usize],
        seed: random.between(0, 250),
        deadline: Duration::from_millis(random.between(shortest, longest)),
        their_deadline: Duration::from_millis(random.between(shortest, longest)),
        cancel: random.once_in(8).then(|| Duration::from_micros(random.magnitude(1, 20_000))),
    }
}

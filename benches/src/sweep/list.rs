//! Which sweeps there are. What a goal is stated for is here as a point; [`crate::goals`] names them again.

use std::time::Duration;

use super::{Plot, Sweep};
use crate::Load;
use crate::engine::Engine::{self, *};
use crate::metric::{Metric, Side};

/// For sweeps that ask how fast bytes move.
const READS: &[Metric] = &[
    Metric::P50,
    Metric::P99,
    Metric::P999,
    Metric::Bandwidth,
    Metric::Rate,
    Metric::CpuPerOperation(Side::Active),
    Metric::CpuPerOperation(Side::Passive),
    Metric::CpuPerGigabyte(Side::Active),
    Metric::CpuPerGigabyte(Side::Passive),
    Metric::Resident(Side::Active),
    Metric::Resident(Side::Passive),
];

/// For sweeps that ask what an operation costs while there are many.
const COSTS: &[Metric] = &[
    Metric::PerOperation,
    Metric::P50,
    Metric::P99,
    Metric::Rate,
    Metric::CpuPerOperation(Side::Active),
    Metric::CpuPerOperation(Side::Passive),
    Metric::Resident(Side::Active),
    Metric::Resident(Side::Passive),
];

/// For sweeps that ask what is in the way of a whole round.
const ROUNDS: &[Metric] = &[
    Metric::P50,
    Metric::P99,
    Metric::Whole,
    Metric::Learned,
    Metric::Offer,
    Metric::Document,
    Metric::CpuPerOperation(Side::Active),
    Metric::CpuPerOperation(Side::Passive),
    Metric::Resident(Side::Passive),
];

/// For sweeps in which nothing happens.
const IDLE: &[Metric] = &[
    Metric::IdleShare(Side::Active),
    Metric::IdleShare(Side::Passive),
    Metric::P50,
    Metric::P99,
    Metric::Learned,
    Metric::Learned99,
];

/// For most sweeps. With what the others have, a run takes less than half an hour on two busy cores.
const PATIENCE: Duration = Duration::from_secs(45);

/// All sweeps, those first that most often matter. `quick` ones have the same engines, the ends of each axis, and
/// are too short to say how fast anything is.
pub fn all(quick: bool) -> Vec<Sweep> {
    let mut sweeps = vec![
        small(),
        size(),
        direction(),
        descriptors(),
        in_flight(),
        open(),
        regions(),
        peers(),
        requests(),
        kv(),
        rate(),
        idle(),
        minute(),
        offers(),
        strangers(),
        cold(),
    ];
    if quick {
        sweeps.iter_mut().for_each(shorten);
    }
    sweeps
}

/// Their names.
pub fn names() -> Vec<&'static str> {
    all(false).iter().map(|sweep| sweep.name).collect()
}

/// Operations at once, descriptors, regions and the like in a quick sweep, at most.
const QUICK_MOST: u64 = 1000;
/// Bytes in an operation of a quick sweep, at most.
const QUICK_BYTES: usize = 4 << 20;

/// Leaves the first point, and the last that is small.
fn shorten(sweep: &mut Sweep) {
    let is_small = |(at, load): &(u64, Load)| {
        let is_of_bytes = *at == load.size as u64;
        load.bytes() <= QUICK_BYTES && (is_of_bytes || *at <= QUICK_MOST)
    };
    let last = sweep.points.iter().rposition(is_small).unwrap_or_default();
    sweep.points.truncate(last + 1);
    sweep.points.drain(1..last.max(1));
    for (_, load) in &mut sweep.points {
        load.lasts = Duration::from_millis(20);
        load.idle = load.idle.min(Duration::from_millis(10));
        load.peers = load.peers.min(4);
        load.size = load.size.min(QUICK_BYTES / load.descriptors);
    }
    sweep.rounds = 1;
}

/// A sweep with a load for each place, made from a page at a time.
fn along(places: &[u64], load: impl Fn(u64, &mut Load)) -> Vec<(u64, Load)> {
    let at = |at: &u64| {
        let mut made = Load::PAGE;
        load(*at, &mut made);
        (*at, made)
    };
    places.iter().map(at).collect()
}

fn small() -> Sweep {
    Sweep {
        name: "small",
        title: "A 4 KiB read, warm",
        about: "One read of a page after another, each of an offer of its own, from metadata that came as JSON. \
                A whole round also has the offer, its way through a pipe, and the passive side's hearing of it.",
        axis: "bytes",
        points: along(&[4096], |_, load| load.lasts = Duration::from_millis(500)),
        engines: vec![
            Nixl,
            NixlAsync,
            Bare,
            BareRepost,
            Original,
            NixlTcp,
            BareTcp,
            NixlThread,
            NixlNoFailures,
            Local,
            LocalAsync,
            Attach,
            Memcpy,
        ],
        rounds: 15,
        patience: Duration::from_secs(90),
        fresh: false,
        columns: &[
            Metric::P50,
            Metric::P99,
            Metric::P999,
            Metric::Whole,
            Metric::Learned,
            Metric::Rate,
            Metric::CpuPerOperation(Side::Active),
            Metric::CpuPerOperation(Side::Passive),
            Metric::Resident(Side::Active),
            Metric::Resident(Side::Passive),
        ],
        plots: &[Plot::Bars(Metric::P50), Plot::Bars(Metric::Whole)],
    }
}

/// Who takes part where bytes are moved in large pieces.
fn movers() -> Vec<Engine> {
    vec![Nixl, Bare, NixlTcp, BareTcp, Local, Attach, Memcpy, Original]
}

fn size() -> Sweep {
    Sweep {
        name: "size",
        title: "Bytes in one read",
        about: "One read at a time, of one descriptor.",
        axis: "bytes in a read",
        points: along(&[1, 256, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 1 << 30], |at, load| {
            load.size = at as usize
        }),
        engines: movers(),
        rounds: 5,
        patience: Duration::from_secs(150),
        fresh: false,
        columns: READS,
        plots: &[
            Plot::Lines(Metric::P50),
            Plot::Lines(Metric::Bandwidth),
            Plot::Lines(Metric::CpuPerGigabyte(Side::Active)),
        ],
    }
}

fn direction() -> Sweep {
    Sweep {
        name: "direction",
        title: "Pull and push",
        about: "The same bytes, read by who needs them or written by who has them, one descriptor at a time.",
        axis: "bytes",
        points: along(&[4 << 10, 1 << 20, 64 << 20], |at, load| load.size = at as usize),
        engines: vec![Nixl, NixlPush, NixlTcp, NixlTcpPush, Local, LocalPush],
        rounds: 5,
        patience: PATIENCE,
        fresh: false,
        columns: READS,
        plots: &[Plot::Lines(Metric::P50), Plot::Lines(Metric::Bandwidth)],
    }
}

fn descriptors() -> Sweep {
    Sweep {
        name: "descriptors",
        title: "Descriptors in one read",
        about: "One read at a time, of so many pages that do not adjoin. nixl-sys registers all of them as one \
                region and keeps its lists; the original stops at 1,024.",
        axis: "descriptors of 4 KiB in a read",
        points: along(&[1, 16, 64, 256, 1024, 4096, 16384], |at, load| load.descriptors = at as usize),
        engines: movers(),
        rounds: 5,
        patience: Duration::from_secs(130),
        fresh: false,
        columns: READS,
        plots: &[Plot::Lines(Metric::P50), Plot::Lines(Metric::Bandwidth)],
    }
}

fn in_flight() -> Sweep {
    Sweep {
        name: "in-flight",
        title: "Reads outstanding",
        about: "So many reads of a page are begun together, and waited for in turn.",
        axis: "reads outstanding",
        points: along(&[1, 10, 100, 1000, 10_000], |at, load| load.in_flight = at as usize),
        engines: vec![Nixl, NixlAsync, Bare, Local, LocalAsync, Original],
        rounds: 5,
        patience: Duration::from_secs(110),
        fresh: false,
        columns: COSTS,
        plots: &[Plot::Lines(Metric::PerOperation), Plot::Lines(Metric::CpuPerOperation(Side::Active))],
    }
}

fn open() -> Sweep {
    Sweep {
        name: "open",
        title: "Offers open meanwhile",
        about: "One read of a page at a time, while the passive side has so many other offers open.",
        axis: "offers open",
        points: along(&[1, 10, 100, 1000, 10_000], |at, load| load.open = at as usize),
        engines: vec![Nixl, Local],
        rounds: 5,
        patience: PATIENCE,
        fresh: false,
        columns: ROUNDS,
        plots: &[Plot::Lines(Metric::P50), Plot::Lines(Metric::Whole)],
    }
}

fn regions() -> Sweep {
    Sweep {
        name: "regions",
        title: "Regions registered meanwhile",
        about: "One read of a page at a time, while the passive side has so many other regions registered (for an \
                offer that stays open). The original's metadata names all of them, so that it stops at 1,000.",
        axis: "regions registered",
        points: along(&[1, 10, 100, 1000, 10_000], |at, load| load.regions = at as usize),
        engines: vec![Nixl, Bare, Local, Original],
        rounds: 5,
        patience: Duration::from_secs(90),
        fresh: false,
        columns: ROUNDS,
        plots: &[Plot::Lines(Metric::P50), Plot::Lines(Metric::Whole), Plot::Lines(Metric::Document)],
    }
}

fn peers() -> Sweep {
    Sweep {
        name: "peers",
        title: "Peers",
        about: "One read of a page at a time, of so many peers in turn. They are connectors, or NIXL agents, of one \
                process, because the machine would measure its scheduler otherwise.",
        axis: "peers",
        points: along(&[1, 4, 16, 64], |at, load| {
            load.peers = at as usize;
            load.lasts = Duration::from_millis(600);
        }),
        engines: vec![Nixl, Bare, Local],
        rounds: 3,
        patience: Duration::from_secs(70),
        fresh: false,
        columns: ROUNDS,
        plots: &[Plot::Lines(Metric::P50)],
    }
}

fn requests() -> Sweep {
    Sweep {
        name: "requests",
        title: "4,096 descriptors, again and again",
        about: "What there is to gain from describing 4,096 pages once: by NIXL's lists and requests, and by this \
                library's pools of blocks, whose tickets name them by number. Without a pool each operation comes \
                with a document that describes them all, and registers them.",
        axis: "descriptors of 4 KiB in a read",
        points: along(&[1, 4096], |at, load| load.descriptors = at as usize),
        engines: vec![BareLists, Bare, BarePrepared, BareRepost, Nixl, NixlBlocks, Local, LocalBlocks],
        rounds: 5,
        patience: Duration::from_secs(70),
        fresh: false,
        columns: READS,
        plots: &[Plot::Lines(Metric::P50)],
    }
}

/// 1,024 tokens of Llama 3.1 8B: 32 layers of 8 heads of 128 elements of 2 bytes, twice.
const KV_BYTES: usize = 1024 * 32 * 8 * 128 * 2 * 2;

fn kv() -> Sweep {
    Sweep {
        name: "kv",
        title: "A KV cache of 134 MB",
        about: "1,024 tokens of Llama 3.1 8B, in as many pieces as a layout of its pool makes, none of which adjoin: one \
                flat buffer; 64 blocks of 16 tokens (block-major); K and V of each layer of each block (layer-major, NHD \
                or HND); each head of those (HND, for a reader that takes some of the heads). By ticket of block numbers, \
                and by a document that describes each piece.",
        axis: "pieces",
        points: along(&[1, 64, 4096, 32_768], |at, load| {
            load.descriptors = at as usize;
            load.size = KV_BYTES / load.descriptors;
        }),
        engines: vec![LocalBlocks, Local, NixlBlocks, Nixl, NixlTcpBlocks, NixlTcp, Bare, Attach],
        rounds: 5,
        patience: PATIENCE,
        fresh: false,
        columns: READS,
        plots: &[Plot::Lines(Metric::Bandwidth), Plot::Lines(Metric::P50)],
    }
}

fn rate() -> Sweep {
    Sweep {
        name: "rate",
        title: "1,000 operations a second",
        about: "A whole round with a page begins every millisecond: offer, JSON through a pipe, read, and both sides \
                know. The shares are of everything that both processes do, the pipe included.",
        axis: "operations a second",
        points: along(&[1000], |at, load| {
            load.every = Duration::from_secs(1) / at as u32;
            load.lasts = Duration::from_secs(2);
        }),
        engines: vec![
            Nixl,
            NixlAsync,
            NixlLatency,
            NixlEfficient,
            NixlThread,
            NixlNoFailures,
            Local,
            LocalAsync,
            Bare,
            Pipe,
        ],
        rounds: 3,
        patience: PATIENCE,
        fresh: false,
        columns: &[
            Metric::Share(Side::Active),
            Metric::Share(Side::Passive),
            Metric::CpuPerOperation(Side::Active),
            Metric::CpuPerOperation(Side::Passive),
            Metric::P50,
            Metric::P99,
            Metric::Whole,
            Metric::Learned,
        ],
        plots: &[Plot::Bars(Metric::Share(Side::Active)), Plot::Bars(Metric::Share(Side::Passive))],
    }
}

fn idle() -> Sweep {
    Sweep {
        name: "idle",
        title: "After silence",
        about: "An offer is open for a tenth of a second in which nothing happens, then it is read. What both sides \
                use meanwhile, and how long it takes from begin_read until the passive side's caller knows. The pipe \
                is what waking another process costs on this machine.",
        axis: "milliseconds of silence",
        points: along(&[100], |at, load| {
            load.idle = Duration::from_millis(at);
            load.lasts = Duration::from_secs(6);
        }),
        engines: vec![Nixl, NixlLatency, NixlEfficient, NixlThread, Local, Bare, Original, Pipe],
        rounds: 3,
        patience: PATIENCE,
        fresh: false,
        columns: IDLE,
        plots: &[Plot::Dots(Metric::IdleShare(Side::Passive), Metric::Learned)],
    }
}

fn minute() -> Sweep {
    Sweep {
        name: "minute",
        title: "After a minute of silence",
        about: "The same with a whole minute. A round has one sample, so that this can only show what the second \
                hides.",
        axis: "milliseconds of silence",
        points: along(&[60_000], |at, load| {
            load.idle = Duration::from_millis(at);
            load.lasts = Duration::ZERO;
            load.fewest = 1;
        }),
        engines: vec![Nixl, Local],
        rounds: 1,
        patience: PATIENCE,
        fresh: false,
        columns: IDLE,
        plots: &[],
    }
}

fn offers() -> Sweep {
    Sweep {
        name: "offers",
        title: "Making an offer",
        about: "Registering memory and describing it, for each operation anew: up to its metadata. The original's \
                includes two messages through a pipe.",
        axis: "bytes in an offer",
        points: along(&[4 << 10, 1 << 20, 64 << 20], |at, load| load.size = at as usize),
        engines: vec![Nixl, Local, Original],
        rounds: 5,
        patience: PATIENCE,
        fresh: false,
        columns: &[Metric::Offer, Metric::Document, Metric::Whole],
        plots: &[Plot::Lines(Metric::Offer)],
    }
}

fn strangers() -> Sweep {
    Sweep {
        name: "strangers",
        title: "Notifications that nobody asked for",
        about: "One read of a page at a time, after a stranger has sent the passive side so many notifications that \
                match no operation.",
        axis: "foreign notifications received",
        points: along(&[1, 1000, 10_000], |at, load| load.strangers = at as usize),
        engines: vec![Nixl, Original],
        rounds: 3,
        patience: Duration::from_secs(100),
        fresh: true,
        columns: ROUNDS,
        plots: &[Plot::Lines(Metric::Whole)],
    }
}

fn cold() -> Sweep {
    Sweep {
        name: "cold",
        title: "The first read of two fresh processes",
        about: "Both processes have started and have their connector, but do not know each other: this pays for \
                the connection, the first registration and the first touch of memory.",
        axis: "bytes in a read",
        points: along(&[4 << 10, 64 << 20], |at, load| {
            load.size = at as usize;
            load.cold = true;
            load.lasts = Duration::ZERO;
            load.fewest = 1;
        }),
        engines: vec![Nixl, Bare, NixlTcp, BareTcp, Local, Attach, Original],
        rounds: 5,
        patience: Duration::from_secs(100),
        fresh: true,
        columns: &[
            Metric::P50,
            Metric::Whole,
            Metric::Resident(Side::Active),
            Metric::Resident(Side::Passive),
        ],
        plots: &[Plot::Lines(Metric::P50)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_sweep_has_the_same_engines_and_one_or_two_small_points() {
        for (quick, full) in all(true).into_iter().zip(all(false)) {
            assert_eq!(quick.engines, full.engines);
            assert!(matches!(quick.points.len(), 1 | 2), "{}: {:?}", quick.name, quick.points);
            assert!(quick.points.iter().all(|(_, load)| load.bytes() <= QUICK_BYTES), "{}", quick.name);
        }
    }

    #[test]
    fn sweeps_have_names_of_their_own_and_axes_that_rise() {
        let mut names = names();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        for sweep in all(false) {
            assert!(sweep.points.is_sorted_by_key(|(at, _)| *at), "{}", sweep.name);
        }
    }
}

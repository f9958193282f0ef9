//! What connectors tell each other over NIXL beside the notifications that end operations.
//!
//! NIXL does not tell the side that offers memory who is at it. So a connector that takes an offer of another one
//! says so once the transfer lasts, repeats it while it lives, and says when it gives up. These signs are
//! notifications too, but go only to agents whose name says that they are of this library ([`is_ours`]): the
//! Python original never sees one.
//!
//! A sign counts for as much as the notification that completes an operation: whoever holds the document can send
//! it, and nobody else can.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::transport::{OfferId, TransportError};

/// When the first sign of a transfer is sent. Most transfers are over by then, and cost nothing extra.
pub(super) const FIRST: Duration = Duration::from_millis(100);
/// The pause between two signs.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// How long a taker may be silent before it is given up: a busy machine keeps a thread waiting for a second, but
/// not for five.
pub(super) const SILENCE: Duration = Duration::from_secs(5);
/// Takers of one offer that are remembered. An offer is meant for one.
const MAX_TAKERS: usize = 8;

/// What the taker of an offer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// It is still at it.
    Alive,
    /// It gave up, and touches the memory no more.
    Quiet,
    /// It gave up, but its engine may still be at the memory.
    Failed,
}

const SIGNS: [(Sign, &[u8]); 3] = [
    (Sign::Alive, b"connect/1 alive "),
    (Sign::Quiet, b"connect/1 quiet "),
    (Sign::Failed, b"connect/1 failed "),
];

impl Sign {
    /// The notification that says this of the offer with that key.
    pub(super) fn of(self, key: &str) -> Vec<u8> {
        let prefix = SIGNS.iter().find(|(sign, _)| *sign == self).map_or(&[][..], |(_, prefix)| prefix);
        [prefix, key.as_bytes()].concat()
    }

    /// The sign and the key in a notification, if it is a sign.
    pub(super) fn parse(body: &[u8]) -> Option<(Self, &str)> {
        SIGNS.iter().find_map(|(sign, prefix)| {
            let key = body.strip_prefix(*prefix)?;
            Some((*sign, std::str::from_utf8(key).ok()?))
        })
    }
}

/// The end of the names of this library's agents: `-r` and a number, where the original's end with the number.
pub(super) fn name(worker_id: &str, incarnation: &str, number: u64) -> String {
    format!("{worker_id}-{incarnation}-r{number}")
}

/// Whether the agent of this name understands signs.
pub(super) fn is_ours(agent: &str) -> bool {
    agent
        .rsplit_once("-r")
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What is known of those who take this connector's offers.
#[derive(Debug, Default)]
pub(super) struct Takers {
    offers: HashMap<String, OfferId>,
    taken: HashMap<OfferId, Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// By name, and when it was heard last.
    alive: Vec<(String, Instant)>,
    /// Somebody gave up without being quiet, or fell silent.
    is_unknown: bool,
}

impl Takers {
    pub(super) fn add(&mut self, key: &str, id: OfferId) {
        self.offers.insert(key.to_owned(), id);
    }

    /// Forgets an offer. Says whether all that were known to be at it said that they are quiet, and there was one.
    pub(super) fn remove(&mut self, key: &str, id: OfferId) -> bool {
        self.offers.remove(key);
        self.taken.remove(&id).is_some_and(|taken| taken.alive.is_empty() && !taken.is_unknown)
    }

    /// Takes a sign. Returns the offer that nobody will complete any more, and why.
    pub(super) fn heard(
        &mut self,
        from: &str,
        sign: Sign,
        key: &str,
        now: Instant,
    ) -> Option<(OfferId, TransportError)> {
        let id = *self.offers.get(key)?;
        let taken = self.taken.entry(id).or_default();
        let known = taken.alive.iter().position(|(name, _)| name == from);
        if sign == Sign::Alive {
            match known {
                Some(at) => taken.alive[at].1 = now,
                None if taken.alive.len() < MAX_TAKERS => taken.alive.push((from.to_owned(), now)),
                None => {}
            }
            return None;
        }
        if let Some(at) = known {
            taken.alive.swap_remove(at);
        }
        taken.is_unknown |= sign == Sign::Failed;
        let why = || TransportError::LetGo(format!("{from}: it failed, was cancelled, or ran out of time"));
        taken.alive.is_empty().then(|| (id, why()))
    }

    /// The offers whose takers have all been silent for too long.
    pub(super) fn silent(&mut self, now: Instant) -> Vec<(OfferId, TransportError)> {
        let mut lost = Vec::new();
        for (id, taken) in &mut self.taken {
            let silent = |heard: Instant| now.saturating_duration_since(heard) > SILENCE;
            let Some((name, _)) = taken.alive.iter().find(|(_, heard)| silent(*heard)).cloned() else {
                continue;
            };
            taken.alive.retain(|(_, heard)| !silent(*heard));
            taken.is_unknown = true;
            if taken.alive.is_empty() {
                let reason = format!("{name} began to take the offer and has been silent for {SILENCE:?}");
                lost.push((*id, TransportError::PeerLost(reason)));
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: OfferId = OfferId(7);

    fn takers() -> Takers {
        let mut takers = Takers::default();
        takers.add("key", OFFER);
        takers
    }

    #[test]
    fn p7_a_sign_is_read_as_what_was_said_and_nothing_else_is_a_sign() {
        for (sign, _) in SIGNS {
            assert_eq!(Sign::parse(&sign.of("key")), Some((sign, "key")));
        }
        for other in [&b""[..], b"key", b"connect/1 ", b"connect/1 dead key", b"connect/1 alive \xff"] {
            assert_eq!(Sign::parse(other), None);
        }
    }

    #[test]
    fn agents_of_this_library_are_told_from_the_originals() {
        assert!(is_ours(&name("decode", "0123456789ab", 3)));
        // The original's default worker id is a UUID, which ends like an incarnation.
        for theirs in ["00000000-0000-4000-8000-0123456789ab-1", "decode-1", "x-r", "x-rr1", "r1", ""] {
            assert!(!is_ours(theirs), "{theirs}");
        }
    }

    #[test]
    fn a_taker_that_gives_up_ends_the_offer_and_quiet_means_quiet() {
        let now = Instant::now();
        for (sign, quiet) in [(Sign::Quiet, true), (Sign::Failed, false)] {
            let mut takers = takers();
            assert_eq!(takers.heard("a", Sign::Alive, "key", now), None);
            let (id, error) = takers.heard("a", sign, "key", now).unwrap();
            assert!(id == OFFER && matches!(error, TransportError::LetGo(_)));
            assert_eq!(takers.remove("key", OFFER), quiet);
        }
    }

    #[test]
    fn while_another_taker_lives_the_offer_stays_and_is_not_quiet() {
        let now = Instant::now();
        let mut takers = takers();
        takers.heard("a", Sign::Alive, "key", now);
        takers.heard("b", Sign::Alive, "key", now);
        assert_eq!(takers.heard("a", Sign::Quiet, "key", now), None);
        assert!(!takers.remove("key", OFFER));
    }

    #[test]
    fn p2_a_taker_that_falls_silent_ends_the_offer_once_and_is_not_quiet() {
        let start = Instant::now();
        let mut takers = takers();
        takers.heard("a", Sign::Alive, "key", start);
        assert!(takers.silent(start + SILENCE).is_empty());
        takers.heard("a", Sign::Alive, "key", start + SILENCE);
        assert!(takers.silent(start + SILENCE * 2).is_empty());
        let lost = takers.silent(start + SILENCE * 2 + EVERY);
        assert!(matches!(&lost[..], [(OFFER, TransportError::PeerLost(_))]), "{lost:?}");
        assert!(takers.silent(start + SILENCE * 3).is_empty());
        assert!(!takers.remove("key", OFFER));
    }

    #[test]
    fn p7_signs_of_unknown_offers_and_crowds_of_takers_cost_nothing() {
        let now = Instant::now();
        let mut takers = takers();
        for i in 0..1000 {
            assert_eq!(takers.heard(&format!("x{i}"), Sign::Quiet, &format!("other{i}"), now), None);
            takers.heard(&format!("x{i}"), Sign::Alive, "key", now);
        }
        assert_eq!(takers.taken.len(), 1);
        assert_eq!(takers.taken[&OFFER].alive.len(), MAX_TAKERS);
        assert!(!takers.remove("unknown", OfferId(9)), "an offer that nobody took is not known to be quiet");
    }
}

//! The bytes that travel: byte `i` is `(31 * i + seed) mod 251`.
//!
//! 251 is prime, so the pattern has that period and no alignment repeats it: bytes that arrive at the wrong
//! place, twice or not at all are seen. Workers in Rust and Python make and check the same pattern.

/// The pattern's period.
const PERIOD: usize = 251;

/// The first `len` bytes.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let period = period(seed);
    let mut bytes = Vec::with_capacity(len + PERIOD);
    while bytes.len() < len {
        bytes.extend_from_slice(&period);
    }
    bytes.truncate(len);
    bytes
}

/// Where `bytes` first differ from the pattern.
pub fn first_difference(bytes: &[u8], seed: u64) -> Option<usize> {
    let period = period(seed);
    let chunks = bytes.chunks(PERIOD).enumerate();
    let (chunk, found) = chunks.into_iter().find(|(_, chunk)| **chunk != period[..chunk.len()])?;
    let within = found.iter().zip(period).position(|(found, wanted)| *found != wanted)?;
    Some(chunk * PERIOD + within)
}

/// Panics, naming the first wrong byte, unless `bytes` follow the pattern.
///
/// # Panics
/// They do not.
#[track_caller]
pub fn check(bytes: &[u8], seed: u64) {
    if let Some(at) = first_difference(bytes, seed) {
        panic!("byte {at} of {} is {}, which is not the pattern of seed {seed}", bytes.len(), bytes[at]);
    }
}

fn period(seed: u64) -> [u8; PERIOD] {
    std::array::from_fn(|i| ((31 * i as u64 + seed % PERIOD as u64) % PERIOD as u64) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_what_the_formula_says() {
        for (i, byte) in bytes(1000, 7).into_iter().enumerate() {
            assert_eq!(u64::from(byte), (31 * i as u64 + 7) % 251);
        }
    }

    #[test]
    fn one_wrong_byte_is_found_where_it_is() {
        for at in [0, 250, 251, 999] {
            let mut bytes = bytes(1000, 3);
            assert_eq!(first_difference(&bytes, 3), None);
            bytes[at] ^= 1;
            assert_eq!(first_difference(&bytes, 3), Some(at));
        }
        assert_eq!(first_difference(&bytes(1000, 3)[1..], 3), Some(0));
    }
}

//! The parser and splicer of NIXL's agent blobs, which need nothing of NIXL.

#[allow(clippy::duplicate_mod, reason = "the other is there with the feature `nixl` only")]
#[path = "../transport/nixl/blob.rs"]
mod blob;
#[allow(clippy::duplicate_mod, reason = "the other is there with the feature `nixl` only")]
#[path = "../transport/nixl/reach.rs"]
mod reach;

use super::{bounded, measured, printable};
use blob::{Blob, RemoteRegion, splice};
use reach::Reach;

/// Another agent's: a blob with a connection and one region, as NIXL 1.5.1 writes it.
const OTHER: &[u8] = include_bytes!("../../golden/nixl_blob.bin");

pub(super) fn nixl_blob(input: &[u8]) {
    let (parsed, peak) = measured(|| Blob::parse(input));
    bounded(peak, input.len());
    let blob = match parsed {
        Ok(blob) => blob,
        Err(error) => return printable(&error),
    };
    assert!(!blob.agent.is_empty() && !blob.agent.contains(char::is_control));
    assert!(blob.regions.len() * 24 <= input.len());
    for cut in [input.len() / 4, input.len() / 2, input.len() - 1] {
        assert!(Blob::parse(&input[..cut]).is_err(), "a part of it is whole");
    }
    assert!(Blob::parse(&[input, b"|"].concat()).is_err(), "there may be more behind it");
    let reach = Reach::new(&blob.regions);
    for region in blob.regions.iter().take(8) {
        check_cover(&blob.regions, &reach, region);
    }
    assert_eq!(splice(input, &[input]).as_deref(), Some(input));
    for (connection, memory) in [(input, OTHER), (OTHER, input)] {
        let spliced = splice(connection, &[memory]).expect("both are blobs");
        let [spliced, connection, memory] = [&spliced, connection, memory].map(parse);
        assert_eq!((spliced.agent, spliced.regions), (connection.agent, memory.regions));
    }
}

fn parse(bytes: &[u8]) -> Blob<'_> {
    Blob::parse(bytes).expect("it was parsed before")
}

/// A region covers itself unless it wraps around, and nothing that the arithmetic of 128 bits says it does not.
fn check_cover(regions: &[RemoteRegion], reach: &Reach, region: &RemoteRegion) {
    let &RemoteRegion { memory_type, addr, len, device } = region;
    for (addr, len) in
        [(addr, len), (addr.wrapping_add(1), len), (addr, len.wrapping_add(1)), (addr, u64::MAX)]
    {
        let end = u128::from(addr) + u128::from(len);
        let naive = end <= u128::from(u64::MAX)
            && regions.iter().any(|other| {
                other.memory_type == memory_type
                    && other.device == device
                    && other.addr <= addr
                    && end <= u128::from(other.addr) + u128::from(other.len)
            });
        assert_eq!(reach.covers(memory_type, device, addr, len), naive, "{addr}+{len}");
    }
}

/// For the attacks: what the parser says.
#[cfg(test)]
pub(super) fn parse_refused(bytes: &[u8]) -> Result<(), crate::transport::TransportError> {
    Blob::parse(bytes).map(drop)
}

#[cfg(test)]
#[test]
fn the_golden_blob_is_read_and_spliced() {
    let hex = include_str!("../../golden/nixl_blob.hex").trim();
    assert_eq!(data_encoding::HEXLOWER.encode(OTHER), hex);
    let blob = parse(OTHER);
    assert_eq!(blob.agent, "decode-0-0123456789ab-1");
    let region = RemoteRegion { memory_type: 0, addr: 0x7f00_0000_1000, len: 4096, device: 0 };
    assert_eq!(blob.regions, [region]);
    // The partial metadata of no regions, and of one: as NIXL writes them, and what becomes of the two.
    let memory = OTHER.windows(10).position(|window| window == b"MemSection").expect("it has one");
    let none = [&OTHER[..memory], b"MemSection|nixlSecElms\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0|"].concat();
    assert_eq!(parse(&none).regions, []);
    assert_eq!(splice(&none, &[OTHER]).as_deref(), Some(OTHER));
    assert_eq!(splice(OTHER, &[&none]), Some(none));
}

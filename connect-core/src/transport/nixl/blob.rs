//! The agent blob: what NIXL's `getLocalMD` returns and `loadRemoteMD` takes.
//!
//! NIXL parses it in C++ and makes UCX dial the addresses in it, so [`Blob::parse`] looks first: at the
//! frame, the agent's name (nixl-sys panics on one that is not UTF-8), every count and length, and the
//! memory it describes. [`splice`] makes a blob of the connection data and one operation's regions.
//!
//! The format, the same from NIXL 1.3.2 to 1.5.1 (a test holds each version to it). Lengths and counts are
//! 8 bytes, little-endian; `name:len:bytes|` stands for one field.
//!
//! ```text
//! nixlSerDes|
//! Agent:len:name|  Conns:8:count|  { t:len:backend|  c:len:connection data| } x count
//! :10:MemSection|  nixlSecElms:8:count|
//!   { bknd:len:backend|  nixlDList:10:nixlSDList|  t:4:memory type|  n:8:count|
//!     { :len:(address, length, device, remote key)| } x count } x count
//! ```

use crate::transport::TransportError;

const HEADER: &[u8] = b"nixlSerDes|";
/// Names are at most a worker id, an incarnation and a number; Python's are a UUID and a number.
const MAX_NAME: usize = 256;
/// Backends an agent can have: NIXL ships a dozen plugins.
const MAX_BACKENDS: u64 = 64;
/// Memory types that NIXL knows: DRAM, VRAM, block, object, file. Up to 1.5.1 it looks a type up in an array
/// without checking it, and a blob with another one kills the process that loads it.
const MEMORY_TYPES: u32 = 5;
/// Regions in one blob. The document around it is bounded to 16 MiB, and each takes 40 bytes and more.
const MAX_REGIONS: u64 = 1 << 20;

/// A blob that has passed the checks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Blob<'a> {
    /// The agent's name.
    pub(super) agent: &'a str,
    /// The regions it describes: memory type, address, length, device.
    pub(super) regions: Vec<RemoteRegion>,
    /// Where the memory section begins: before it is the connection data.
    memory_section: usize,
    /// How many lists of regions that has, and where they begin.
    lists: (u64, usize),
}

/// One region that a blob makes reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RemoteRegion {
    pub(super) memory_type: u32,
    pub(super) addr: u64,
    pub(super) len: u64,
    pub(super) device: u64,
}

impl<'a> Blob<'a> {
    /// Checks a blob.
    ///
    /// # Errors
    /// [`TransportError::Protocol`] naming the field that is wrong.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, TransportError> {
        let mut fields = Fields::new(bytes)?;
        let agent = std::str::from_utf8(fields.field(b"Agent")?).ok().filter(|name| is_plain(name));
        let agent = agent.ok_or_else(|| damaged("the agent's name is not a plain name"))?;
        let connections = fields.count(b"Conns", MAX_BACKENDS)?;
        for _ in 0..connections {
            let backend = fields.field(b"t")?;
            let connection = fields.field(b"c")?;
            if backend == b"UCX" {
                check_ucx_address(connection)?;
            }
        }
        let memory_section = fields.at;
        if fields.field(b"")? != b"MemSection" {
            return Err(damaged("the memory section is missing"));
        }
        let mut regions = Vec::new();
        let count = fields.count(b"nixlSecElms", MAX_BACKENDS)?;
        let lists = (count, fields.at);
        for _ in 0..count {
            fields.field(b"bknd")?;
            if fields.field(b"nixlDList")? != b"nixlSDList" {
                return Err(damaged("a descriptor list is of an unknown kind"));
            }
            let memory_type = fields.field(b"t")?.try_into().map(u32::from_le_bytes);
            let memory_type = memory_type.map_err(|_| damaged("a memory type is not 4 bytes"))?;
            if memory_type >= MEMORY_TYPES {
                return Err(damaged(&format!("there is no memory type {memory_type}")));
            }
            for _ in 0..fields.count(b"n", MAX_REGIONS)? {
                regions.push(RemoteRegion::parse(memory_type, fields.field(b"")?)?);
            }
        }
        if fields.at != bytes.len() {
            return Err(damaged("there are bytes after the end"));
        }
        Ok(Self { agent, regions, memory_section, lists })
    }
}

impl RemoteRegion {
    fn parse(memory_type: u32, bytes: &[u8]) -> Result<Self, TransportError> {
        let number =
            |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        match (number(0), number(8), number(16)) {
            (Some(addr), Some(len), Some(device)) => Ok(Self { memory_type, addr, len, device }),
            _ => Err(damaged("a region is too short")),
        }
    }
}

/// The connection data of one blob with the memory sections of others, one for each kind of memory, as one blob. `None`
/// when any is of a format this crate does not know; the caller then takes the agent's whole blob.
pub(super) fn splice(connection: &[u8], memories: &[impl AsRef<[u8]>]) -> Option<Vec<u8>> {
    let mut spliced = connection[..Blob::parse(connection).ok()?.memory_section].to_vec();
    let mut lists = Vec::new();
    let mut total = 0u64;
    for memory in memories {
        // Partial metadata of regions may come without connections; its own frame still parses.
        let memory = memory.as_ref();
        let (count, at) = Blob::parse(memory).ok()?.lists;
        total += count;
        lists.extend_from_slice(&memory[at..]);
    }
    put(&mut spliced, b"", b"MemSection");
    put(&mut spliced, b"nixlSecElms", &total.to_le_bytes());
    spliced.extend_from_slice(&lists);
    Blob::parse(&spliced).ok()?;
    Some(spliced)
}

fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    out.extend_from_slice(value);
    out.push(b'|');
}

/// Walks over the fields of a blob. A field's name is known from its place, never searched for: a length's
/// first byte can be a letter too.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, TransportError> {
        if !bytes.starts_with(HEADER) {
            return Err(damaged("it does not begin like one"));
        }
        Ok(Self { bytes, at: HEADER.len() })
    }

    fn field(&mut self, name: &[u8]) -> Result<&'a [u8], TransportError> {
        let field = self.try_field(name);
        field.ok_or_else(|| {
            let name =
                if name.is_empty() { "a nameless field".into() } else { String::from_utf8_lossy(name) };
            damaged(&format!("{name} is missing or cut off at byte {}", self.at))
        })
    }

    fn try_field(&mut self, name: &[u8]) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?.strip_prefix(name)?;
        let (len, rest) = rest.split_first_chunk::<8>()?;
        let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
        let value = rest.get(..len)?;
        if rest.get(len) != Some(&b'|') {
            return None;
        }
        self.at += name.len() + 8 + len + 1;
        Some(value)
    }

    fn count(&mut self, name: &[u8], max: u64) -> Result<u64, TransportError> {
        let count = self.field(name)?.try_into().map(u64::from_le_bytes);
        match count {
            Ok(count) if count <= max => Ok(count),
            Ok(count) => Err(damaged(&format!("it counts {count} of {}", String::from_utf8_lossy(name)))),
            Err(_) => Err(damaged("a count is not 8 bytes")),
        }
    }
}

/// UCX takes an address apart under assertions, and aborts the process when one fails. This is the one that a
/// single damaged byte can reach: the version, in the low half of the first byte.
fn check_ucx_address(address: &[u8]) -> Result<(), TransportError> {
    /// Versions 1 and 2 are written as 0 and 1.
    const LATEST: u8 = 1;
    match address.first() {
        Some(first) if first & 0x0f <= LATEST => Ok(()),
        Some(first) => Err(damaged(&format!("there is no version {} of a UCX address", first & 0x0f))),
        None => Err(damaged("a UCX address is empty")),
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
}

fn damaged(reason: &str) -> TransportError {
    TransportError::Protocol(format!("not a valid NIXL agent blob: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::put as field;

    /// A blob as NIXL 1.5.1 writes it, with `conns` connections and these regions.
    fn blob(name: &[u8], conns: u64, regions: &[(u64, u64)]) -> Vec<u8> {
        let mut out = HEADER.to_vec();
        field(&mut out, b"Agent", name);
        field(&mut out, b"Conns", &conns.to_le_bytes());
        for _ in 0..conns {
            field(&mut out, b"t", b"UCX");
            field(&mut out, b"c", &[0x20; 99]);
        }
        field(&mut out, b"", b"MemSection");
        let lists = u64::from(!regions.is_empty());
        field(&mut out, b"nixlSecElms", &lists.to_le_bytes());
        if lists == 1 {
            field(&mut out, b"bknd", b"UCX");
            field(&mut out, b"nixlDList", b"nixlSDList");
            field(&mut out, b"t", &0u32.to_le_bytes());
            field(&mut out, b"n", &(regions.len() as u64).to_le_bytes());
            for (addr, len) in regions {
                let mut value = addr.to_le_bytes().to_vec();
                value.extend_from_slice(&len.to_le_bytes());
                value.extend_from_slice(&0u64.to_le_bytes());
                value.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff]);
                field(&mut out, b"", &value);
            }
        }
        out
    }

    #[test]
    fn a_blob_says_who_made_it_and_what_it_describes() {
        let bytes = blob(b"worker-1", 1, &[(0x1000, 4096), (0x9000, 16)]);
        let blob = Blob::parse(&bytes).unwrap();
        assert_eq!(blob.agent, "worker-1");
        let region = |addr, len| RemoteRegion { memory_type: 0, addr, len, device: 0 };
        assert_eq!(blob.regions, [region(0x1000, 4096), region(0x9000, 16)]);
    }

    #[test]
    fn splicing_takes_connections_from_one_and_regions_from_the_other() {
        let connection = blob(b"worker-1", 1, &[]);
        let region = blob(b"worker-1", 0, &[(0x1000, 64)]);
        assert_eq!(splice(&connection, &[&region]).unwrap(), blob(b"worker-1", 1, &[(0x1000, 64)]));
        assert_eq!(splice(&connection, &[b"something else"]), None);
    }

    #[test]
    fn regions_of_several_kinds_of_memory_come_into_one_blob() {
        let connection = blob(b"worker-1", 1, &[]);
        let host = blob(b"worker-1", 0, &[(0x1000, 64), (0x3000, 8)]);
        let mut device = blob(b"worker-1", 0, &[(0x1000, 16)]);
        let kind = [&b"t"[..], &4u64.to_le_bytes()].concat();
        let at = device.windows(kind.len()).position(|window| window == kind).unwrap() + kind.len();
        device[at] = 1;
        let spliced = splice(&connection, &[&host, &device]).unwrap();
        let region = |memory_type, addr, len| RemoteRegion { memory_type, addr, len, device: 0 };
        let blob = Blob::parse(&spliced).unwrap();
        assert_eq!(blob.regions, [region(0, 0x1000, 64), region(0, 0x3000, 8), region(1, 0x1000, 16)]);
        assert_eq!((blob.agent, blob.lists.0), ("worker-1", 2));
    }

    #[test]
    fn p5_a_blob_cut_anywhere_is_refused() {
        let bytes = blob(b"worker-1", 2, &[(0x1000, 64)]);
        for end in 0..bytes.len() {
            assert!(Blob::parse(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn p5_an_unknown_memory_type_is_refused() {
        // NIXL 1.5.1 crashes in nixlMemSection::emplace.
        let bytes = blob(b"worker-1", 1, &[(0x1000, 64)]);
        let field = [&b"t"[..], &4u64.to_le_bytes()].concat();
        let at = bytes.windows(field.len()).position(|window| window == field).unwrap() + field.len();
        for (value, known) in [(0u32, true), (4, true), (5, false), (0x100, false), (u32::MAX, false)] {
            let mut bytes = bytes.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert_eq!(Blob::parse(&bytes).is_ok(), known, "{value}");
        }
    }

    #[test]
    fn p5_an_unknown_version_of_a_ucx_address_is_refused() {
        // UCX 1.20 aborts in ucp_address_unpack.
        let good = blob(b"worker-1", 1, &[]);
        let at = good.iter().position(|byte| *byte == 0x20).unwrap();
        for (first, known) in [(0x20u8, true), (0x21, true), (0x22, false), (0x2f, false), (0xf0, true)] {
            let mut bytes = good.clone();
            bytes[at] = first;
            assert_eq!(Blob::parse(&bytes).is_ok(), known, "{first:#x}");
        }
    }

    #[test]
    fn p5_no_flipped_byte_makes_the_parser_read_outside() {
        let bytes = blob(b"worker-1", 1, &[(0x1000, 64)]);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            let _ = Blob::parse(&damaged);
        }
    }

    #[test]
    fn p5_hostile_names_and_counts_are_refused() {
        assert!(Blob::parse(&blob(&[0xff, 0xfe], 1, &[])).is_err());
        assert!(Blob::parse(&blob(b"", 1, &[])).is_err());
        assert!(Blob::parse(&blob(b"a\nb", 1, &[])).is_err());
        let mut many = HEADER.to_vec();
        field(&mut many, b"Agent", b"x");
        field(&mut many, b"Conns", &u64::MAX.to_le_bytes());
        assert!(Blob::parse(&many).is_err());
        let mut trailing = blob(b"x", 1, &[]);
        trailing.push(0);
        assert!(Blob::parse(&trailing).is_err());
    }
}

//! Bounded reading and writing of little-endian numbers and length-prefixed bytes, shared by the blob and the
//! frames. Pure: no IO, no address is used.

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) String);

impl Malformed {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// Takes values off the front of a slice.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| Malformed(format!("{what}: {len} bytes announced, {} there", self.rest.len())))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self, what: &str) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u16(&mut self, what: &str) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Bytes behind a 16-bit length that must be 1 to `max`.
    pub(super) fn bytes(&mut self, max: usize, what: &str) -> Result<&'a [u8], Malformed> {
        let len = usize::from(self.u16(what)?);
        if len == 0 || len > max {
            return Err(Malformed(format!("{what} has {len} bytes; it must have 1 to {max}")));
        }
        self.take(len, what)
    }

    /// The same as UTF-8.
    fn string(&mut self, max: usize, what: &str) -> Result<String, Malformed> {
        let bytes = self.bytes(max, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Malformed(format!("{what} is not UTF-8")))
    }

    /// A name or a sentence: UTF-8 without control characters, because it ends up in logs and errors.
    pub(super) fn line(&mut self, max: usize, what: &str) -> Result<String, Malformed> {
        let line = self.string(max, what)?;
        if line.contains(char::is_control) {
            return Err(Malformed(format!("{what} has control characters")));
        }
        Ok(line)
    }

    /// Refuses what is left over.
    pub(super) fn finish(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(Malformed(format!("{left} bytes too many"))),
        }
    }
}

/// Appends bytes behind a 16-bit length. The caller has checked that they are no longer than the bound that
/// [`Reader::bytes`] will ask for; what is longer is cut, which the reader can only find too short.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&bytes[..usize::from(len)]);
}

//! The only unsafe code of this transport: memory of this process as [`Source`] and [`Target`], and the four
//! ways bytes get from one to the other.
//!
//! # The contract that every unsafe block here relies on
//! A `Source` or `Target` of this process is made in [`Source::of`] and [`Target::of`] alone, from regions
//! that came through [`Transport::offer`](crate::transport::Transport::offer) or
//! [`Transport::begin`](crate::transport::Transport::begin). Their callers promise to keep that memory alive,
//! readable (a source) or writable and theirs alone (a target), until `end_offer` or `release` says `Quiet`;
//! the regions themselves come from a [`SourceMemory`](crate::SourceMemory) or
//! [`TargetMemory`](crate::TargetMemory). This transport drops every `Source` and `Target` of an operation
//! before it says `Quiet`, so while one exists its memory may be used. What is done with them moves a cursor
//! that stays inside those regions.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, UnixAddr, sendmsg};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::cursor::Cursor;
use super::frame::NONCE;
use crate::Region;

/// Pieces in one system call. The kernel takes 1024; these are on the stack, and a system call costs as much as a few.
const MAX_PIECES: usize = 256;

/// Memory of this process that is being read.
#[derive(Debug)]
pub(super) struct Source(Cursor);

/// Memory of this process that is being written.
#[derive(Debug)]
pub(super) struct Target(Cursor);

/// Memory of another process; plain numbers that only the kernel interprets, in that process.
#[derive(Debug)]
pub(super) struct Remote(Cursor);

impl Source {
    /// The source regions of an offer or a transfer; see the contract above.
    pub(super) fn of(regions: &Arc<[Region]>) -> Self {
        Self(Cursor::new(Arc::clone(regions)))
    }

    pub(super) fn left(&self) -> u64 {
        self.0.left()
    }

    /// Sends the next bytes, at most `max`, straight from the memory, and steps over what was sent.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, max: u64) -> Result<u64, Errno> {
        let mut slices = [IoSlice::new(&[]); MAX_PIECES];
        let mut count = 0;
        for (slice, (addr, len)) in slices.iter_mut().zip(self.0.pieces(max)) {
            // SAFETY: the contract above: the piece lies in a region that is alive, readable and not
            // written while this value exists, and the slice does not outlive this call.
            let bytes = unsafe { std::slice::from_raw_parts(pointer(addr).cast_const(), len as usize) };
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let sent = sendmsg::<UnixAddr>(socket.as_raw_fd(), &slices[..count], &[], flags, None)? as u64;
        self.0.advance(sent);
        Ok(sent)
    }
}

impl Target {
    /// The target regions of an offer or a transfer; see the contract above.
    pub(super) fn of(regions: &Arc<[Region]>) -> Self {
        Self(Cursor::new(Arc::clone(regions)))
    }

    pub(super) fn left(&self) -> u64 {
        self.0.left()
    }

    /// Receives the next bytes, at most `max`, straight into the memory. 0 means that the peer closed.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, max: u64) -> Result<u64, Errno> {
        let vectors = Vectors::of(&self.0, max);
        let pieces = vectors.as_slice();
        // SAFETY: the contract above: every vector lies in regions that are alive, writable and accessed by
        // nobody else while this value exists. The socket is non-blocking, so the kernel is done with them
        // when the call returns.
        let result = unsafe { libc::readv(socket.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32) };
        let received = Errno::result(result)? as u64;
        self.0.advance(received);
        Ok(received)
    }

    /// Copies the next bytes, at most `max`, out of the memory of process `pid`. `remote` must have as many
    /// regions as this target, of the same lengths, and stand at the same byte.
    pub(super) fn copy_from_process(
        &mut self,
        pid: i32,
        remote: &mut Remote,
        max: u64,
    ) -> Result<u64, Errno> {
        let (local, theirs) = (Vectors::of(&self.0, max), Vectors::of(&remote.0, max));
        let (local, theirs) = (local.as_slice(), theirs.as_slice());
        // SAFETY: the contract above for the local vectors, as in `receive`. The remote ones are never
        // dereferenced here: the kernel looks them up in the other process and fails if they are not there.
        let result = unsafe {
            libc::process_vm_readv(
                pid,
                local.as_ptr(),
                local.len() as libc::c_ulong,
                theirs.as_ptr(),
                theirs.len() as libc::c_ulong,
                0,
            )
        };
        let copied = Errno::result(result)? as u64;
        self.0.advance(copied);
        remote.0.advance(copied);
        Ok(copied)
    }

    /// Copies the next bytes, at most `max`, from memory of this same process. Both sides have the same
    /// number of regions, of the same lengths, and stand at the same byte.
    pub(super) fn copy_from(&mut self, source: &mut Source, max: u64) -> u64 {
        let mut copied = 0;
        for ((to, to_len), (from, from_len)) in self.0.pieces(max).zip(source.0.pieces(max)) {
            let len = to_len.min(from_len);
            // SAFETY: the contract above, for both: the source is readable and the target writable for `len`
            // bytes. `copy` allows that they overlap, should somebody offer the memory he reads into.
            unsafe { ptr::copy(pointer(from).cast_const(), pointer(to), len as usize) };
            copied += len;
            if to_len != from_len {
                break;
            }
        }
        self.0.advance(copied);
        source.0.advance(copied);
        copied
    }
}

impl Remote {
    pub(super) fn of(regions: &Arc<[Region]>) -> Self {
        Self(Cursor::new(Arc::clone(regions)))
    }
}

/// The next pieces of a cursor, as system calls take them; those that follow each other directly are one. Made without
/// an allocation: there is one for each 256 KiB of a stream.
struct Vectors {
    all: [libc::iovec; MAX_PIECES],
    count: usize,
}

impl Vectors {
    fn of(cursor: &Cursor, max: u64) -> Self {
        let none = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let mut vectors = Self { all: [none; MAX_PIECES], count: 0 };
        for (addr, len) in cursor.pieces(max) {
            let len = len as usize;
            match vectors.all[..vectors.count].last_mut() {
                Some(last) if last.iov_base.addr() + last.iov_len == addr as usize => last.iov_len += len,
                _ if vectors.count == MAX_PIECES => break,
                _ => {
                    vectors.all[vectors.count] = libc::iovec { iov_base: pointer(addr).cast(), iov_len: len };
                    vectors.count += 1;
                }
            }
        }
        vectors
    }

    fn as_slice(&self) -> &[libc::iovec] {
        &self.all[..self.count]
    }
}

/// The address as a pointer. Its provenance was exposed when the region was made from a pointer.
fn pointer(addr: u64) -> *mut u8 {
    ptr::with_exposed_provenance_mut(addr as usize)
}

/// Whether `nonce` can be read at `addr` in the memory of process `pid`: then cross-memory attach works, `pid`
/// means the same process to both sides (it would not across pid namespaces), and it still is the process
/// that told us.
pub(super) fn process_holds(pid: i32, addr: u64, nonce: &[u8; NONCE]) -> bool {
    let mut found = [0; NONCE];
    let remote = RemoteIoVec { base: addr as usize, len: NONCE };
    let read = process_vm_readv(Pid::from_raw(pid), &mut [std::io::IoSliceMut::new(&mut found)], &[remote]);
    read == Ok(NONCE) && found == *nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions(parts: &mut [Vec<u8>]) -> Arc<[Region]> {
        let region = |part: &mut Vec<u8>| {
            Region::new(crate::Device::CPU, part.as_mut_ptr() as u64, part.len() as u64).unwrap()
        };
        parts.iter_mut().map(region).collect()
    }

    #[test]
    fn a_copy_inside_the_process_takes_regions_of_any_size() {
        let mut from = [vec![1u8; 5], vec![2; 1], vec![3; 10]];
        let mut to = [vec![0u8; 5], vec![0; 1], vec![0; 10]];
        let mut source = Source::of(&regions(&mut from));
        let mut target = Target::of(&regions(&mut to));
        while target.left() > 0 {
            assert_eq!(target.copy_from(&mut source, 4), 4);
        }
        assert_eq!(from, to);
        assert_eq!(source.left(), 0);
    }

    #[test]
    fn more_pieces_than_one_call_takes_follow_in_the_next_and_adjacent_ones_are_one() {
        let mut from: Vec<u8> = (0..=255u8).cycle().take(4 * MAX_PIECES).collect();
        let base = from.as_mut_ptr() as u64;
        let region = |at: usize, len: u64| Region::new(crate::Device::CPU, base + at as u64, len).unwrap();
        // Every second byte, and then the same in one piece for each two.
        let apart: Arc<[Region]> = (0..2 * MAX_PIECES).map(|i| region(2 * i, 1)).collect();
        let adjacent: Arc<[Region]> = (0..2 * MAX_PIECES).map(|i| region(i, 1)).collect();
        assert_eq!(Vectors::of(&Cursor::new(Arc::clone(&apart)), u64::MAX).as_slice().len(), MAX_PIECES);
        assert_eq!(Vectors::of(&Cursor::new(adjacent), u64::MAX).as_slice().len(), 1);
        let mut to = [vec![0u8; 2 * MAX_PIECES]];
        let mut target = Target::of(&regions(&mut to));
        let mut remote = Remote::of(&apart);
        let pid = std::process::id() as i32;
        while target.left() > 0 {
            assert_ne!(target.copy_from_process(pid, &mut remote, u64::MAX), Ok(0));
        }
        assert!(to[0].iter().enumerate().all(|(i, byte)| *byte == from[2 * i]));
    }

    #[test]
    fn an_address_that_is_not_mapped_is_an_error_not_a_crash() {
        let mut to = [vec![0u8; 8]];
        let mut target = Target::of(&regions(&mut to));
        let remote: Arc<[Region]> = Arc::new([Region::new(crate::Device::CPU, 8, 8).unwrap()]);
        let pid = std::process::id() as i32;
        assert_eq!(target.copy_from_process(pid, &mut Remote::of(&remote), 8), Err(Errno::EFAULT));
        assert!(!process_holds(pid, 8, &[0; NONCE]));
    }
}

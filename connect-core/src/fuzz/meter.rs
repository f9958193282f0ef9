//! How much memory a call takes: [`Meter`], an allocator that counts what the current thread holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator with a counter for each thread. The fuzzing program and this crate's tests use it.
#[derive(Debug)]
pub struct Meter;

#[cfg(test)]
#[global_allocator]
static METER: Meter = Meter;

#[derive(Clone, Copy)]
struct Count {
    held: isize,
    peak: isize,
}

thread_local! {
    static COUNT: Cell<Count> = const { Cell::new(Count { held: 0, peak: 0 }) };
}

/// Runs `f`; returns also how much more was held at once than before it.
pub(crate) fn measured<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = COUNT.get().held;
    COUNT.set(Count { held: before, peak: before });
    let value = f();
    (value, (COUNT.get().peak - before).unsigned_abs())
}

/// What reading `len` bytes may cost. A value of a document takes 2 bytes there and 32 here, and a list that
/// grows is there twice for a moment; the rest is for buffers of fixed size.
pub(crate) fn bounded(peak: usize, len: usize) {
    assert!(peak <= 64 * len + (64 << 10), "{peak} bytes for an input of {len}");
}

fn note(delta: isize) {
    // A thread that is ending has no counter any more.
    let _ = COUNT.try_with(|count| {
        let Count { held, peak } = count.get();
        let held = held.wrapping_add(delta);
        count.set(Count { held, peak: peak.max(held) });
    });
}

// SAFETY: every call goes to the system's allocator as it is; counting does not allocate.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note(new_size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

//! The fake CUDA driver's own functions: what it was asked, and what is queued.
//!
//! They are looked up at run time, so that these tests can be built where CUDA is real. There they fail, since they
//! show nothing about a GPU and must not seem to.
#![expect(unsafe_code, reason = "calls of a C interface")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use libloading::os::unix::Library;

struct Fake {
    note: unsafe extern "C" fn(*const c_char),
    take_trace: unsafe extern "C" fn(*mut c_char, usize) -> usize,
    bound: unsafe extern "C" fn() -> c_int,
    queued: unsafe extern "C" fn(c_int) -> c_int,
    arrive: unsafe extern "C" fn(u64, *const c_void, usize, c_int) -> c_int,
}

static FAKE: LazyLock<Fake> = LazyLock::new(|| {
    let program = Library::this();
    macro_rules! find {
        ($name:literal) => {{
            // SAFETY: driver.c declares it as the field it goes into has it.
            let found = unsafe { program.get($name) };
            *found.expect(
                "these tests are for the fake CUDA driver: `cargo xtask test --only cuda` runs them with it",
            )
        }};
    }
    Fake {
        note: find!(b"fakecuda_note"),
        take_trace: find!(b"fakecuda_take_trace"),
        bound: find!(b"fakecuda_bound"),
        queued: find!(b"fakecuda_queued"),
        arrive: find!(b"fakecuda_arrive"),
    }
});

/// Keeps the driver, of which a process has one, to one test. What is wrong by then is said at the end.
pub(crate) struct Alone(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

pub(crate) fn alone() -> Alone {
    static ONE: Mutex<()> = Mutex::new(());
    let alone = Alone(ONE.lock().unwrap_or_else(PoisonError::into_inner));
    settle();
    trace();
    alone
}

/// Waits until the devices' threads have done what earlier tests left them.
fn settle() {
    for device in [0, 1].map(connect_core::Device::cuda) {
        let (done, is_done) = std::sync::mpsc::channel();
        connect_core::accelerator::run_on_thread_of(device, move || done.send(()).expect("somebody waits"));
        is_done.recv().expect("the job runs");
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        settle();
        let wrong: Vec<String> = trace().into_iter().filter(|line| line.starts_with(WRONG)).collect();
        assert!(wrong.is_empty() || std::thread::panicking(), "{wrong:#?}");
    }
}

const WRONG: &str = "WRONG: ";

/// Something that must not be; the test that sees it fails at its end.
pub(crate) fn wrong(what: &str) {
    note(&format!("{WRONG}{what}"));
}

/// Adds a line to what the driver was asked.
pub(crate) fn note(line: &str) {
    let line = CString::new(line).unwrap();
    // SAFETY: it reads the string until its end.
    unsafe { (FAKE.note)(line.as_ptr()) }
}

/// What the driver was asked since the last time, in order, with the notes between.
pub(crate) fn trace() -> Vec<String> {
    let mut buffer = vec![0u8; 1 << 20];
    // SAFETY: it writes into the buffer, and no more than that holds.
    let len = unsafe { (FAKE.take_trace)(buffer.as_mut_ptr().cast(), buffer.len()) };
    String::from_utf8_lossy(&buffer[..len]).lines().map(str::to_owned).collect()
}

/// The device whose context the calling thread has.
pub(crate) fn bound() -> Option<u32> {
    // SAFETY: it takes nothing.
    u32::try_from(unsafe { (FAKE.bound)() }).ok()
}

/// How much is queued that changes memory of a device.
pub(crate) fn queued(device: u32) -> usize {
    // SAFETY: it takes a number.
    usize::try_from(unsafe { (FAKE.queued)(device as c_int) }).unwrap()
}

/// How an engine's bytes come into a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// By a copy that is queued in the context when the engine says that it is done.
    InContext,
    /// Over the bus, past everything that is queued.
    OverTheBus,
}

/// Has bytes arrive at a device's address.
pub(crate) fn arrive(address: u64, bytes: &[u8], how: Arrival) {
    let over_the_bus = c_int::from(how == Arrival::OverTheBus);
    // SAFETY: it copies the bytes before it returns.
    let result = unsafe { (FAKE.arrive)(address, bytes.as_ptr().cast(), bytes.len(), over_the_bus) };
    assert_eq!(result, 0, "{address:#x} is no memory of a device");
}

//! Memory that knows whether the simulated transport may still touch it: [`Tracked`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Device, Region, SourceMemory, TargetMemory};

/// What there is of memory, by address. Addresses are never used twice.
#[derive(Default)]
struct Table {
    /// Every piece that was made and not yet dropped, with its length.
    alive: BTreeMap<u64, u64>,
    /// What the transport was given and has not called quiet, with its length.
    touchable: BTreeMap<u64, u64>,
    next: u64,
    /// What went wrong, kept because a drop must not panic.
    violations: Vec<String>,
}

/// All memory of one world.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Table>>);

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn make(&self, len: u64) -> Tracked {
        let mut table = self.lock();
        // Pages apart, from an address that nothing has.
        table.next += 0x1_0000;
        let addr = table.next;
        table.alive.insert(addr, len);
        Tracked { addr, len, ledger: self.clone() }
    }

    /// The transport got hold of these.
    pub(super) fn may_touch(&self, regions: &[Region]) {
        let mut table = self.lock();
        for region in regions {
            if !table.alive.contains_key(&region.addr()) {
                table.violations.push(format!("the transport was given {region:?}, which is gone"));
            }
            table.touchable.insert(region.addr(), region.len());
        }
    }

    /// The transport is about to say that it let go.
    pub(super) fn quiet(&self, addr: u64) {
        self.lock().touchable.remove(&addr);
    }

    pub(super) fn is_alive(&self, addr: u64) -> bool {
        self.lock().alive.contains_key(&addr)
    }

    pub(super) fn is_touchable(&self, addr: u64) -> bool {
        self.lock().touchable.contains_key(&addr)
    }

    pub(super) fn violation(&self, what: String) {
        self.lock().violations.push(what);
    }

    /// The first thing that went wrong.
    pub(super) fn check(&self) {
        let violation = self.lock().violations.first().cloned();
        assert!(violation.is_none(), "{}", violation.unwrap_or_default());
    }

    pub(super) fn is_empty(&self) -> bool {
        let table = self.lock();
        table.alive.is_empty() && table.touchable.is_empty()
    }

    fn dropped(&self, addr: u64) {
        let mut table = self.lock();
        if table.alive.remove(&addr).is_none() {
            table.violations.push(format!("P1: memory at {addr:#x} was dropped twice"));
        }
        if table.touchable.contains_key(&addr) {
            table.violations.push(format!("P1: memory at {addr:#x} was freed while it could be touched"));
        }
    }
}

/// One piece of memory, by address only: there is nothing behind it, because nothing is ever moved.
pub(super) struct Tracked {
    pub(super) addr: u64,
    pub(super) len: u64,
    ledger: Ledger,
}

impl Tracked {
    fn region(&self) -> Vec<Region> {
        Region::new(Device::CPU, self.addr, self.len).into_iter().collect()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.ledger.dropped(self.addr);
    }
}

// SAFETY: only the simulated transport is given it, and that touches no memory.
unsafe impl SourceMemory for Tracked {
    fn regions(&self) -> Vec<Region> {
        self.region()
    }
}

// SAFETY: as above.
unsafe impl TargetMemory for Tracked {
    fn regions(&mut self) -> Vec<Region> {
        self.region()
    }
}

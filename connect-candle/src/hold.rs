//! Which storages this library's operations hold: offers share a storage, a receive has it alone.
//!
//! Candle's public read lock waits behind a queued writer, and a writer that is queued behind an offer waits
//! until that offer ends. A second offer of the same storage would then wait for the first one's peer. So this
//! module keeps one pin per storage, and a second offer shares it without touching the lock.
//!
//! What it can't see are locks that others hold. Offering a tensor waits for an in-place operation that is
//! running on its storage right now, as every Candle operation does. It must not be called from inside such an
//! operation on the same storage, nor while the same thread holds the guard of `storage_and_layout()`: Candle
//! itself would not return from that either.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Shape, Tensor};

use crate::error::{TensorError, TensorInfo};
use crate::pin::ReadPin;

/// Why a storage can't be held: it is taken, and the text says by whom, or Candle refused to show it.
pub(crate) enum Denied {
    Busy(&'static str),
    Candle(candle_core::Error),
}

impl Denied {
    pub(crate) fn into_error(self, info: &TensorInfo) -> TensorError {
        let tensor = info.clone();
        match self {
            Self::Busy(holder) => TensorError::Busy { tensor, holder },
            Self::Candle(error) => TensorError::Candle { tensor, source: Box::new(error) },
        }
    }
}

/// Pins the tensor's storage for reading, or shares the pin it already has.
pub(crate) fn pin(tensor: &Tensor) -> Result<Arc<ReadPin>, Denied> {
    let slot = Slot::of(tensor)?;
    let mut holder = slot.lock();
    let shared = match &*holder {
        Holder::Receive => return Err(Denied::Busy("an operation is receiving into its storage")),
        Holder::Offers(pin) => pin.upgrade(),
        Holder::Nobody => None,
    };
    Ok(shared.unwrap_or_else(|| {
        let pin = Arc::new(ReadPin::new(tensor, slot.clone()));
        *holder = Holder::Offers(Arc::downgrade(&pin));
        pin
    }))
}

/// Reserves the tensor's storage for one receive. It takes no lock of Candle's: other code may go on reading
/// and writing the old content until the new one is stored.
pub(crate) fn claim(tensor: &Tensor) -> Result<Claim, Denied> {
    let slot = Slot::of(tensor)?;
    let mut holder = slot.lock();
    match &*holder {
        Holder::Receive => return Err(Denied::Busy("another operation is receiving into its storage")),
        Holder::Offers(pin) if pin.strong_count() > 0 => {
            return Err(Denied::Busy("its storage is offered to a peer"));
        }
        Holder::Offers(_) | Holder::Nobody => *holder = Holder::Receive,
    }
    drop(holder);
    Ok(Claim(slot))
}

/// The right to replace a storage's content, until it is dropped.
pub(crate) struct Claim(Slot);

impl Drop for Claim {
    fn drop(&mut self) {
        *self.0.lock() = Holder::Nobody;
    }
}

/// Who holds a storage.
enum Holder {
    Nobody,
    /// Offers that share a pin; dangling once the last of them is gone.
    Offers(Weak<ReadPin>),
    Receive,
}

/// The entry of one storage. It exists while somebody holds the storage or is about to.
#[derive(Clone)]
pub(crate) struct Slot {
    address: usize,
    holder: Option<Arc<Mutex<Holder>>>,
}

static SLOTS: LazyLock<Mutex<HashMap<usize, Arc<Mutex<Holder>>>>> = LazyLock::new(Mutex::default);

fn slots() -> MutexGuard<'static, HashMap<usize, Arc<Mutex<Holder>>>> {
    SLOTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    fn of(tensor: &Tensor) -> Result<Self, Denied> {
        let address = storage_address(tensor).map_err(Denied::Candle)?;
        let mut slots = slots();
        let holder = slots.entry(address).or_insert_with(|| Arc::new(Mutex::new(Holder::Nobody)));
        Ok(Self { address, holder: Some(Arc::clone(holder)) })
    }

    /// Every change of a holder is one assignment, so a poisoned lock guards a whole value.
    fn lock(&self) -> MutexGuard<'_, Holder> {
        let holder = self.holder.as_ref().expect("a slot gives up its entry only when dropped");
        holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = slots();
        drop(self.holder.take());
        // Only the map's own reference is left, and new ones are made under the lock held here.
        if slots.get(&self.address).is_some_and(|holder| Arc::strong_count(holder) == 1) {
            slots.remove(&self.address);
        }
    }
}

/// Where the storage object itself is: the same for all views of it, and different from every other living
/// storage.
///
/// Candle's public `storage_and_layout` would wait behind a queued writer. An operation's own view of its
/// argument does not, as long as somebody reads: so an operation that computes nothing does the looking.
fn storage_address(tensor: &Tensor) -> candle_core::Result<usize> {
    let look = Look(Cell::new(0));
    // On a GPU the operation ends with an error, since its result would have to be allocated there.
    match (tensor.apply_op1_no_bwd(&look), look.0.get()) {
        (Err(error), 0) => Err(error),
        (_, address) => Ok(address),
    }
}

struct Look(Cell<usize>);

impl Look {
    fn at<S>(&self, storage: &S) {
        self.0.set(std::ptr::from_ref(storage).addr());
    }
}

impl CustomOp1 for Look {
    fn name(&self) -> &'static str {
        "connect: which storage"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.at(storage);
        Ok((CpuStorage::U8(Vec::new()), Shape::from(0)))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        self.at(storage);
        Err(candle_core::Error::Msg("it was only looked at".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use std::sync::mpsc;
    use std::time::Duration;

    fn zeros() -> Tensor {
        Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap()
    }

    fn busy<T>(result: Result<T, Denied>) -> bool {
        matches!(result, Err(Denied::Busy(_)))
    }

    fn known(tensor: &Tensor) -> bool {
        let address = storage_address(tensor).unwrap();
        slots().contains_key(&address)
    }

    #[test]
    fn views_of_one_storage_share_one_pin_and_others_do_not() {
        let tensor = zeros();
        let first = pin(&tensor.narrow(0, 0, 2).unwrap()).ok().unwrap();
        let second = pin(&tensor.t().unwrap()).ok().unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&first, &pin(&zeros()).ok().unwrap()));
    }

    #[test]
    fn a_second_offer_does_not_wait_behind_a_queued_writer() {
        let tensor = zeros();
        let first = pin(&tensor).ok().unwrap();
        let writer = std::thread::spawn({
            let tensor = tensor.clone();
            move || tensor.zero_set().unwrap()
        });
        std::thread::sleep(Duration::from_millis(50));
        let (done, finished) = mpsc::channel();
        let view = tensor.narrow(0, 1, 1).unwrap();
        std::thread::spawn(move || done.send(pin(&view).is_ok()).unwrap());
        assert_eq!(finished.recv_timeout(Duration::from_secs(5)), Ok(true));
        assert!(!writer.is_finished());
        drop(first);
        writer.join().unwrap();
    }

    #[test]
    fn a_receive_excludes_offers_and_other_receives_until_it_ends() {
        let tensor = zeros();
        let claimed = claim(&tensor).ok().unwrap();
        assert!(busy(pin(&tensor)) && busy(claim(&tensor.t().unwrap())));
        drop(claimed);
        let pinned = pin(&tensor).ok().unwrap();
        assert!(busy(claim(&tensor)));
        drop(pinned);
        assert!(claim(&tensor).is_ok());
    }

    #[test]
    fn nothing_stays_behind_for_a_storage_that_nobody_holds() {
        let tensor = zeros();
        let (first, second) = (pin(&tensor).ok().unwrap(), pin(&tensor).ok().unwrap());
        drop(first);
        assert!(known(&tensor));
        drop(second);
        assert!(!known(&tensor));
        drop(claim(&tensor).ok().unwrap());
        assert!(!known(&tensor));
    }
}

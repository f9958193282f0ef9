//! New tensors as target memory: nobody else has a handle before they are filled.
#![expect(unsafe_code, reason = "implements TargetMemory for tensors of libtorch's own allocation")]

use connect_core::accelerator::Accelerators;
use connect_core::layout;
use connect_core::{Device, Received, Region, Report, TargetMemory, TensorSpec};
use tch::{Kind, Tensor};

use crate::device::Place;
use crate::dtype::kind_of;
use crate::error::{TensorError, TensorInfo, first_line};
use crate::inspect::{self, data_address};

/// What a fresh tensor holds before it is filled.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// Nothing yet. For reads: this side's own transport tells when every byte was written.
    Unset,
    /// Zeros. For memory that a peer writes: there, completion is the peer's word, and a peer that lies must
    /// not make stale memory readable.
    Zeroed,
}

/// A tensor to be made.
pub(crate) struct Plan {
    pub(crate) info: TensorInfo,
    pub(crate) kind: Kind,
    pub(crate) shape: Vec<i64>,
    /// Follows from the two.
    pub(crate) bytes: u64,
    /// The lengths of the peer's pieces. Its own are cut like them, since an operation pairs them.
    pub(crate) pieces: Vec<u64>,
}

impl Plan {
    /// The tensor that a peer describes, to be made on a device.
    ///
    /// # Errors
    /// [`TensorError::DType`], [`TensorError::Allocation`].
    pub(crate) fn of(spec: &TensorSpec, place: Place, pieces: &[u64]) -> Result<Self, TensorError> {
        let info = described(spec, Some(place.device()));
        let Some(kind) = info.kind else {
            let dtype = spec.dtype.to_string();
            return Err(TensorError::DType { tensor: info, dtype, lacking: "tch does not have" });
        };
        let (bytes, pieces) = (spec.byte_len, pieces.to_vec());
        match info.shape.clone() {
            Some(shape) => Ok(Self { info, kind, shape, bytes, pieces }),
            None => {
                let reason = format!("the shape {:?} is beyond libtorch's numbers", spec.shape);
                Err(TensorError::Allocation { tensor: info, bytes, reason })
            }
        }
    }
}

/// The tensor that a peer describes, as errors name it.
pub(crate) fn described(spec: &TensorSpec, device: Option<Device>) -> TensorInfo {
    let shape: Result<Vec<i64>, _> = spec.shape.iter().map(|&dim| i64::try_from(dim)).collect();
    TensorInfo { name: spec.name.clone(), kind: kind_of(spec.dtype), shape: shape.ok(), device }
}

/// New tensors on one device, filled one after the other.
pub(crate) struct FreshTensors {
    place: Place,
    tensors: Vec<(TensorInfo, Tensor)>,
    regions: Vec<Region>,
}

impl FreshTensors {
    /// Allocates them. On a GPU this belongs on the device's thread: it may wait for what is queued there.
    ///
    /// # Errors
    /// [`TensorError::Allocation`], [`TensorError::Layout`].
    pub(crate) fn new(place: Place, plans: Vec<Plan>, content: Content) -> Result<Self, TensorError> {
        let mut fresh = Self { place, tensors: Vec::with_capacity(plans.len()), regions: Vec::new() };
        for plan in plans {
            fresh.add(plan, content)?;
        }
        Ok(fresh)
    }

    fn add(&mut self, plan: Plan, content: Content) -> Result<(), TensorError> {
        let Plan { info, kind, shape, bytes, pieces } = plan;
        let allocation = |reason: &str| TensorError::Allocation {
            tensor: info.clone(),
            bytes,
            reason: first_line(reason),
        };
        let options = (kind, self.place.torch());
        let tensor = match content {
            Content::Unset => Tensor::f_empty(shape.as_slice(), options),
            Content::Zeroed => Tensor::f_zeros(shape.as_slice(), options),
        };
        let tensor = tensor.map_err(|error| allocation(&error.to_string()))?;
        let addr = data_address(&tensor).map_err(|error| allocation(&error))?;
        // Without elements there is no region.
        let whole: Vec<Region> = Region::new(self.place.device(), addr, bytes).into_iter().collect();
        let pieces = layout::split_to_match(&whole, &pieces);
        self.regions.extend(pieces.map_err(|source| inspect::refused(&info, source))?);
        self.tensors.push((info, tensor));
        Ok(())
    }

    /// The filled tensors, by name, if they are what `specs` say, of which there is one for each. That a completed
    /// operation gave them back is the proof that they are filled.
    ///
    /// # Errors
    /// [`TensorError::Digest`], [`TensorError::NotBool`]; [`TensorError::Torch`] when a GPU's memory can't be copied to
    /// the host for that.
    pub(crate) fn filled_as(
        received: Received<Self>,
        specs: &[TensorSpec],
    ) -> Result<(Vec<(String, Tensor)>, Report), TensorError> {
        for (spec, (info, tensor)) in specs.iter().zip(&received.memory.tensors) {
            if spec.digest.is_some() {
                let host = HostBytes::of(info, tensor, spec.byte_len)?;
                spec.check_digest([host.bytes()])?;
            }
        }
        Self::filled(received)
    }

    /// The same of tensors that nothing more is known of.
    ///
    /// # Errors
    /// [`TensorError::NotBool`]; [`TensorError::Torch`].
    pub(crate) fn filled(received: Received<Self>) -> Result<(Vec<(String, Tensor)>, Report), TensorError> {
        for (info, tensor) in &received.memory.tensors {
            check_bools(info, tensor)?;
        }
        let tensors = received.memory.tensors.into_iter().map(|(info, tensor)| (info.name, tensor));
        Ok((tensors.collect(), received.report))
    }
}

// SAFETY: each region is the memory of one of the tensors, which libtorch allocated for exactly these bytes:
// `bytes` follows from the same dtype and shape. The handles here are the only ones, and are not used while
// the operation has them; moving them does not move the storage; numbers take any bit pattern, and
// booleans are checked before anybody gets the tensor (`filled`).
unsafe impl TargetMemory for FreshTensors {
    fn regions(&mut self) -> Vec<Region> {
        self.regions.clone()
    }

    fn accelerators(&self) -> Accelerators {
        self.place.accelerator().into_iter().collect()
    }
}

/// Refuses a `Bool` tensor with a byte that is neither 0 nor 1: libtorch would hand it out as one of Rust's
/// `bool`s, which must not have any other.
fn check_bools(info: &TensorInfo, tensor: &Tensor) -> Result<(), TensorError> {
    if tensor.kind() != Kind::Bool {
        return Ok(());
    }
    let host = HostBytes::of(info, tensor, tensor.numel() as u64)?;
    match host.bytes().iter().find(|&&byte| byte > 1) {
        Some(&byte) => Err(TensorError::NotBool { tensor: info.clone(), byte }),
        None => Ok(()),
    }
}

/// The bytes of a fresh tensor that was filled, where the CPU can read them: the tensor itself, or a copy of a GPU's.
struct HostBytes {
    tensor: Tensor,
    len: usize,
}

impl HostBytes {
    fn of(info: &TensorInfo, tensor: &Tensor, bytes: u64) -> Result<Self, TensorError> {
        // A tensor of the CPU is not copied. From a GPU this returns when everything is here.
        let host = tensor.f_to(tch::Device::Cpu);
        let tensor = host.map_err(|error| inspect::torch(info, &error.to_string()))?;
        Ok(Self { tensor, len: bytes as usize })
    }

    fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: a fresh tensor is contiguous and so is its copy; `len` follows from its kind and shape; it is on the
        // CPU. The operation has given it back, so that every byte was written and nobody writes to it any more: nobody
        // else has a handle before this one is gone.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<u8>(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use connect_core::{Connector, Error, MemoryError};

    use super::*;
    use crate::cuda::tests::Fake;

    fn plan(place: Place) -> Plan {
        let spec = TensorSpec::new("x", connect_core::DType::F32, [2, 3], 0..1).unwrap();
        Plan::of(&spec, place, &[24]).unwrap()
    }

    #[test]
    fn p3_new_memory_on_a_gpu_is_given_to_a_peer_only_after_its_device_was_waited_for() {
        // System memory that is called a GPU's which is not there: libtorch can't wait for that, and says so.
        let place = Place::among(&Fake::of(1000), tch::Device::Cuda(999)).unwrap();
        let mut fresh = FreshTensors::new(Place::CPU, vec![plan(Place::CPU)], Content::Zeroed).unwrap();
        assert!(TargetMemory::accelerators(&fresh).is_empty());
        fresh.place = place;
        let failed = Connector::local().unwrap().create_writable(fresh).wait().err().unwrap();
        let Error::Memory(MemoryError::Accelerator { device, reason }) = failed.error else { panic!() };
        assert!(device == Device::cuda(999) && !reason.contains("panicked"), "{device}: {reason}");
    }

    #[test]
    fn tensors_of_a_gpu_are_made_there() {
        let place = Place::among(&Fake::of(1000), tch::Device::Cuda(999)).unwrap();
        let refused = FreshTensors::new(place, vec![plan(place)], Content::Unset).err().unwrap();
        assert!(matches!(refused, TensorError::Allocation { .. }), "{refused}");
        assert!(refused.to_string().contains("F32 [2, 3] on cuda:999"), "{refused}");
    }
}

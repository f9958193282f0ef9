//! What the tests of this crate share.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::time::{Duration, Instant};

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use connect_core::Connector;

/// Long enough to see that something does not happen, short enough to wait for.
pub(crate) const A_MOMENT: Duration = Duration::from_millis(100);

pub(crate) fn connector() -> Connector {
    Connector::local().unwrap()
}

/// A tensor with element `i` of row-major order equal to `i`.
pub(crate) fn counted(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap().reshape(shape).unwrap()
}

pub(crate) fn elements(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Address and bytes of the tensor's whole storage.
pub(crate) fn storage(tensor: &Tensor) -> (u64, Vec<u8>) {
    fn plain<T: bytemuck::NoUninit>(vec: &[T]) -> (u64, Vec<u8>) {
        (vec.as_ptr() as u64, bytemuck::cast_slice(vec).to_vec())
    }
    let (guard, _) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*guard else { panic!("not on the CPU") };
    match storage {
        CpuStorage::U8(v) | CpuStorage::F6E2M3(v) | CpuStorage::F6E3M2(v) => plain(v),
        CpuStorage::F4(v) | CpuStorage::F8E8M0(v) => plain(v),
        CpuStorage::U32(v) => plain(v),
        CpuStorage::I16(v) => plain(v),
        CpuStorage::I32(v) => plain(v),
        CpuStorage::I64(v) => plain(v),
        CpuStorage::BF16(v) => plain(v),
        CpuStorage::F16(v) => plain(v),
        CpuStorage::F32(v) => plain(v),
        CpuStorage::F64(v) => plain(v),
        CpuStorage::F8E4M3(v) => plain(v),
    }
}

/// A tensor of any type, opaque ones included, whose bytes are neither equal nor zero.
pub(crate) fn of_type(dtype: DType, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let opaque = |bits: usize| (1..=(count * bits).div_ceil(8)).map(|i| i as u8).collect::<Vec<u8>>();
    let storage = match dtype {
        DType::F4 => CpuStorage::F4(opaque(4)),
        DType::F6E2M3 => CpuStorage::F6E2M3(opaque(6)),
        DType::F6E3M2 => CpuStorage::F6E3M2(opaque(6)),
        DType::F8E8M0 => CpuStorage::F8E8M0(opaque(8)),
        _ => {
            let numbers = Tensor::arange(1f32, 1. + count as f32, &Device::Cpu).unwrap();
            return numbers.to_dtype(dtype).unwrap().reshape(shape).unwrap();
        }
    };
    Tensor::from((Storage::Cpu(storage), shape))
}

pub(crate) const DTYPES: [DType; 14] = [
    DType::U8,
    DType::U32,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::BF16,
    DType::F16,
    DType::F32,
    DType::F64,
    DType::F8E4M3,
    DType::F6E2M3,
    DType::F6E3M2,
    DType::F4,
    DType::F8E8M0,
];

/// Waits for something that happens on another thread.
pub(crate) fn eventually(what: &str, happened: impl Fn() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

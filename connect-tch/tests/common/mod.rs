//! What the tests of this crate share.
#![allow(dead_code, reason = "each test binary uses some of it")]

use connect_core::Connector;
use tch::{Device, Kind, Tensor};

pub(crate) const KINDS: [Kind; 15] = [
    Kind::Uint8,
    Kind::Int8,
    Kind::Int16,
    Kind::Int,
    Kind::Int64,
    Kind::Half,
    Kind::BFloat16,
    Kind::Float,
    Kind::Double,
    Kind::Bool,
    Kind::ComplexFloat,
    Kind::Float8e5m2,
    Kind::Float8e4m3fn,
    Kind::Float8e5m2fnuz,
    Kind::Float8e4m3fnuz,
];

pub(crate) fn connector() -> Connector {
    Connector::local().unwrap()
}

/// A tensor with element `i` of row-major order equal to `i`.
pub(crate) fn counted(shape: &[i64]) -> Tensor {
    Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).reshape(shape)
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.detach().to_kind(Kind::Float).contiguous().view(-1)).unwrap()
}

pub(crate) fn bytes(tensor: &Tensor) -> Vec<u8> {
    Vec::try_from(tensor.contiguous().view(-1).view_dtype(Kind::Uint8)).unwrap()
}

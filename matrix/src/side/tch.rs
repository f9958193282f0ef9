//! libtorch, by tch.
#![expect(unsafe_code, reason = "the calls of connect-tch, whose tensors nobody else has here")]

use anyhow::{Context, Result, ensure};
use connect_core::{Connector, DType, TensorEnvelope};
use connect_tch::{TensorExt, kind_of, recv_new, recv_writable};
use tch::{Kind, Tensor};

use super::{End, NAME, Refused, Side};
use crate::case::{BASE, Case, Layout, SHAPE, START};

/// `connect_tch`.
#[derive(Debug)]
pub struct Tch;

impl Side for Tch {
    fn has(&self, dtype: DType) -> bool {
        kind_of(dtype).is_some()
    }

    fn offer(&self, connector: &Connector, case: Case) -> Result<(TensorEnvelope, End)> {
        // SAFETY: nobody else has the tensor.
        let offer = unsafe { source(case)?.send_readable(connector) }.wait()?;
        let envelope = offer.envelope(NAME)?;
        Ok((envelope, Box::new(move || Ok(offer.wait_for_completion().wait().map(drop)?))))
    }

    fn receive(&self, connector: &Connector, case: Case, envelope: &TensorEnvelope) -> Result<()> {
        match case.layout {
            Layout::Contiguous => {
                let tensors = recv_new(connector, envelope).wait()?;
                check(&tensors[NAME], case)
            }
            Layout::Strided => {
                let base = tensor(case.dtype, &case.zeros(), BASE)?;
                // SAFETY: nobody else has the base, and it is not used before this has ended.
                unsafe { view(&base).recv_into(connector, envelope.metadata()) }.wait()?;
                case.check_base(&bytes(&base)?)
            }
        }
    }

    fn make_room(&self, connector: &Connector, case: Case) -> Result<(TensorEnvelope, End)> {
        if case.layout == Layout::Strided {
            return Err(Refused("peers push into new tensors only, which are contiguous").into());
        }
        let offer = recv_writable(connector, kind(case.dtype)?, dims(SHAPE)).wait()?;
        let envelope = offer.envelope(NAME)?;
        Ok((envelope, Box::new(move || check(&offer.wait_for_completion().wait()?.0, case))))
    }

    fn push(&self, connector: &Connector, case: Case, envelope: &TensorEnvelope) -> Result<()> {
        // SAFETY: nobody else has the tensor.
        unsafe { source(case)?.send_into(connector, envelope.metadata()) }.wait()?;
        Ok(())
    }
}

fn source(case: Case) -> Result<Tensor> {
    match case.layout {
        Layout::Contiguous => tensor(case.dtype, &case.bytes(), SHAPE),
        Layout::Strided => Ok(view(&tensor(case.dtype, &case.base(), BASE)?)),
    }
}

fn view(base: &Tensor) -> Tensor {
    base.narrow(2, START as i64, SHAPE[2] as i64).transpose(0, 1)
}

fn kind(dtype: DType) -> Result<Kind> {
    kind_of(dtype).context(Refused("tch has no such element type"))
}

fn dims(shape: [usize; 3]) -> [i64; 3] {
    shape.map(|dim| dim as i64)
}

fn tensor(dtype: DType, bytes: &[u8], shape: [usize; 3]) -> Result<Tensor> {
    Ok(Tensor::f_from_data_size(bytes, &dims(shape), kind(dtype)?)?)
}

/// A contiguous tensor's.
fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    Ok(Vec::try_from(tensor.view(-1).view_dtype(Kind::Uint8))?)
}

fn check(tensor: &Tensor, case: Case) -> Result<()> {
    ensure!(tensor.kind() == kind(case.dtype)? && tensor.size() == dims(SHAPE), "{tensor:?}");
    case.check(&bytes(tensor)?)
}

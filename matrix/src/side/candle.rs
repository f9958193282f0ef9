//! Candle.

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, DType as CandleDType, Device, Storage, Tensor};
use connect_candle::{TensorExt, candle_dtype, dtype_of, recv_new, recv_writable};
use connect_core::{Connector, DType, TensorEnvelope};
use safetensors::View;

use super::{End, NAME, Refused, Side};
use crate::case::{BASE, Case, Layout, SHAPE, START};

/// `connect_candle`.
#[derive(Debug)]
pub struct Candle;

impl Side for Candle {
    fn has(&self, dtype: DType) -> bool {
        // Truth values are received as U8, and sent as such from then on.
        candle_dtype(dtype).and_then(dtype_of) == Some(dtype)
    }

    fn offer(&self, connector: &Connector, case: Case) -> Result<(TensorEnvelope, End)> {
        let offer = source(case)?.send_readable(connector).wait()?;
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
                let base = tensor(case.dtype, case.zeros(), BASE)?;
                view(&base)?.recv_into(connector, envelope.metadata()).wait()?;
                case.check_base(&bytes(&base))
            }
        }
    }

    fn make_room(&self, connector: &Connector, case: Case) -> Result<(TensorEnvelope, End)> {
        if case.layout == Layout::Strided {
            return Err(Refused("peers push into new tensors only, which are contiguous").into());
        }
        let offer = recv_writable(connector, dtype(case.dtype)?, &SHAPE[..]).wait()?;
        let envelope = offer.envelope(NAME)?;
        Ok((envelope, Box::new(move || check(&offer.wait_for_completion().wait()?.0, case))))
    }

    fn push(&self, connector: &Connector, case: Case, envelope: &TensorEnvelope) -> Result<()> {
        source(case)?.send_into(connector, envelope.metadata()).wait()?;
        Ok(())
    }
}

fn source(case: Case) -> Result<Tensor> {
    match case.layout {
        Layout::Contiguous => tensor(case.dtype, case.bytes(), SHAPE),
        Layout::Strided => view(&tensor(case.dtype, case.base(), BASE)?),
    }
}

fn view(base: &Tensor) -> Result<Tensor> {
    Ok(base.narrow(2, START, SHAPE[2])?.transpose(0, 1)?)
}

fn dtype(dtype: DType) -> Result<CandleDType> {
    candle_dtype(dtype).context(Refused("Candle has no such element type"))
}

fn tensor(wanted: DType, bytes: Vec<u8>, shape: [usize; 3]) -> Result<Tensor> {
    // Candle makes no tensors of the opaque types itself.
    let storage = match dtype(wanted)? {
        CandleDType::F4 => CpuStorage::F4(bytes),
        CandleDType::F6E2M3 => CpuStorage::F6E2M3(bytes),
        CandleDType::F6E3M2 => CpuStorage::F6E3M2(bytes),
        CandleDType::F8E8M0 => CpuStorage::F8E8M0(bytes),
        dtype => return Ok(Tensor::from_raw_buffer(&bytes, dtype, &shape, &Device::Cpu)?),
    };
    Ok(Tensor::from((Storage::Cpu(storage), &shape[..])))
}

/// A contiguous tensor's.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    let (storage, _) = tensor.storage_and_layout();
    if let Storage::Cpu(
        CpuStorage::F4(bytes)
        | CpuStorage::F6E2M3(bytes)
        | CpuStorage::F6E3M2(bytes)
        | CpuStorage::F8E8M0(bytes),
    ) = &*storage
    {
        return bytes.clone();
    }
    drop(storage);
    tensor.data().into_owned()
}

fn check(tensor: &Tensor, case: Case) -> Result<()> {
    ensure!(tensor.dtype() == dtype(case.dtype)? && tensor.dims() == SHAPE, "{tensor:?}");
    case.check(&bytes(tensor))
}

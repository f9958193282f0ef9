//! One entry of a document's descriptor list.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::MetadataError;
use super::json::{self, Object};
use crate::device::{Device, ParseDeviceError};
use crate::memory::Region;

/// A piece of the offering side's memory: its device, address and length, as a document carries them.
///
/// Never null, empty or wrapping around. The address means something to the offering process only; it is
/// kept out of `Debug`, because documents end up in logs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SerializedDescriptor(Region);

impl SerializedDescriptor {
    /// Where the memory lives.
    pub const fn device(&self) -> Device {
        self.0.device()
    }

    /// The address of the first byte.
    pub const fn ptr(&self) -> u64 {
        self.0.addr()
    }

    /// The length in bytes, never zero.
    pub const fn size(&self) -> u64 {
        self.0.len()
    }

    /// The same as a region.
    pub const fn region(&self) -> Region {
        self.0
    }
}

impl From<Region> for SerializedDescriptor {
    fn from(region: Region) -> Self {
        Self(region)
    }
}

impl fmt::Debug for SerializedDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SerializedDescriptor({} [address]+{})", self.device(), self.size())
    }
}

impl Serialize for SerializedDescriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("SerializedDescriptor", 3)?;
        fields.serialize_field("device", &self.device())?;
        fields.serialize_field("ptr", &self.ptr())?;
        fields.serialize_field("size", &self.size())?;
        fields.end()
    }
}

impl<'de> Deserialize<'de> for SerializedDescriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Object(raw) = Object::<RawDescriptor>::deserialize(deserializer)?;
        raw.check(0).map_err(D::Error::custom)
    }
}

/// A descriptor as it was read, before its values were looked at.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDescriptor {
    device: WireDevice,
    #[serde(deserialize_with = "ptr")]
    ptr: u64,
    #[serde(deserialize_with = "size")]
    size: u64,
}

impl RawDescriptor {
    /// The descriptor, if its values are sound; `index` is its place in the list, for the error.
    pub(super) fn check(self, index: usize) -> Result<SerializedDescriptor, MetadataError> {
        let device = self.device.0.map_err(|source| MetadataError::Device { index, source })?;
        let region = Region::new(device, self.ptr, self.size);
        region.map(SerializedDescriptor).map_err(|source| MetadataError::Range { index, source })
    }
}

fn ptr<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "ptr")
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "size")
}

/// A device name, or why it is none. The reason is kept until the descriptor's index is known.
struct WireDevice(Result<Device, ParseDeviceError>);

impl WireDevice {
    fn new(name: &str) -> Self {
        // `Device` also takes `host`, `gpu` and `cpu:0`. The original takes those from its own caller, but
        // not from a peer, and no peer writes them.
        let lower = name.trim().to_ascii_lowercase();
        let is_of_the_wire = lower == "cpu" || lower.starts_with("cuda") || lower.starts_with("xpu");
        Self(if is_of_the_wire { name.parse() } else { Err(ParseDeviceError::new(name)) })
    }
}

impl<'de> Deserialize<'de> for WireDevice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = WireDevice;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`device` to be a string")
            }
            fn visit_str<E: Error>(self, name: &str) -> Result<WireDevice, E> {
                Ok(WireDevice::new(name))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(device: &str) -> Result<SerializedDescriptor, serde_json::Error> {
        serde_json::from_value(serde_json::json!({"device": device, "ptr": 4096, "size": 48}))
    }

    #[test]
    fn devices_are_read_as_the_original_reads_them() {
        for (name, device) in [
            ("cpu", Device::CPU),
            (" CPU\n", Device::CPU),
            ("cuda", Device::cuda(0)),
            ("Cuda:3", Device::cuda(3)),
            ("xpu", Device::xpu(0)),
            ("xpu:1", Device::xpu(1)),
        ] {
            assert_eq!(read(name).unwrap().device(), device, "{name:?}");
        }
    }

    #[test]
    fn devices_that_no_peer_writes_are_refused() {
        for name in
            ["", "host", "gpu", "gpu:0", "cpu:0", "cpu:1", "cudax", "cuda:-1", "cuda:0;f32", "xpu:x", "mps"]
        {
            let error = read(name).unwrap_err().to_string();
            assert!(error.starts_with("descriptor 0: unknown device"), "{name:?}: {error}");
        }
    }

    #[test]
    fn addresses_keep_all_their_bits() {
        let json = format!(r#"{{"device":"cuda:1","ptr":{},"size":1}}"#, u64::MAX - 1);
        let descriptor: SerializedDescriptor = serde_json::from_str(&json).unwrap();
        assert_eq!(descriptor.ptr(), u64::MAX - 1);
        assert_eq!(serde_json::to_string(&descriptor).unwrap(), json);
    }

    #[test]
    fn debug_output_hides_the_address() {
        let region = Region::new(Device::CPU, 123_456, 48).unwrap();
        assert_eq!(
            format!("{:?}", SerializedDescriptor::from(region)),
            "SerializedDescriptor(cpu [address]+48)"
        );
    }
}

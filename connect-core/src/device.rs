//! Where memory lives: [`Device`] and [`DeviceKind`], parsed and printed as the Python original does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The kind of memory behind a descriptor.
///
/// The discriminants are those of the Python original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum DeviceKind {
    /// System (CPU) memory.
    Host = 1,
    /// Memory of a CUDA device.
    Cuda = 2,
    /// Memory of an Intel XPU (Level-Zero) device.
    Xpu = 3,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "cpu",
            Self::Cuda => "cuda",
            Self::Xpu => "xpu",
        })
    }
}

/// A device and, for accelerators, which one of them.
///
/// ```
/// use connect_core::{Device, DeviceKind};
///
/// let device: Device = "cuda".parse()?;
/// assert_eq!(device, Device::cuda(0));
/// assert_eq!(device.kind(), DeviceKind::Cuda);
/// assert_eq!(device.to_string(), "cuda:0");
/// # Ok::<(), connect_core::ParseDeviceError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    kind: DeviceKind,
    id: u32,
}

impl Device {
    /// System memory.
    pub const CPU: Self = Self { kind: DeviceKind::Host, id: 0 };

    /// CUDA device number `id`.
    pub const fn cuda(id: u32) -> Self {
        Self { kind: DeviceKind::Cuda, id }
    }

    /// XPU device number `id`.
    pub const fn xpu(id: u32) -> Self {
        Self { kind: DeviceKind::Xpu, id }
    }

    /// The kind of memory.
    pub const fn kind(self) -> DeviceKind {
        self.kind
    }

    /// Which device of its kind; always 0 for system memory.
    pub const fn id(self) -> u32 {
        self.id
    }

    /// Whether this is system memory.
    pub const fn is_cpu(self) -> bool {
        matches!(self.kind, DeviceKind::Host)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            DeviceKind::Host => f.write_str("cpu"),
            kind => write!(f, "{kind}:{}", self.id),
        }
    }
}

/// A device name that is none of `cpu`, `host`, `cuda[:N]`, `gpu[:N]`, `xpu[:N]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device {name:?}: expected cpu, cuda:N or xpu:N")]
pub struct ParseDeviceError {
    name: String,
}

impl ParseDeviceError {
    pub(crate) fn new(name: &str) -> Self {
        // A name from a peer ends up in logs, so its length is bounded here.
        Self { name: name.chars().take(32).collect() }
    }
}

impl FromStr for Device {
    type Err = ParseDeviceError;

    /// Case and surrounding blanks do not matter; a missing index is 0. Unlike the original, a name that
    /// merely begins like a device (`cudax`, `cuda:-1`, `cuda:abc`) is an error.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let error = || ParseDeviceError::new(name);
        let lower = name.trim().to_ascii_lowercase();
        let (kind, index) = match lower.split_once(':') {
            Some((kind, index)) => (kind, Some(index)),
            None => (lower.as_str(), None),
        };
        let id = match index {
            None => 0,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().map_err(|_| error())?
            }
            Some(_) => return Err(error()),
        };
        match kind {
            "cpu" | "host" if id == 0 => Ok(Self::CPU),
            "cuda" | "gpu" => Ok(Self::cuda(id)),
            "xpu" => Ok(Self::xpu(id)),
            _ => Err(error()),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl serde::de::Visitor<'_> for Name {
            type Value = Device;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a device name: cpu, cuda:N or xpu:N")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Device, E> {
                name.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_original_emits_parse_and_print_alike() {
        for name in ["cpu", "cuda:0", "cuda:7", "xpu:3"] {
            assert_eq!(name.parse::<Device>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn short_and_loose_spellings_are_accepted() {
        for (name, device) in [
            ("cuda", Device::cuda(0)),
            (" CUDA:1 ", Device::cuda(1)),
            ("gpu:2", Device::cuda(2)),
            ("host", Device::CPU),
            ("xpu", Device::xpu(0)),
        ] {
            assert_eq!(name.parse(), Ok(device), "{name:?}");
        }
    }

    #[test]
    fn names_that_only_look_like_devices_are_refused() {
        for name in
            ["", "cudax", "cuda:", "cuda:-1", "cuda:abc", "cuda:0;f32", "cpu:1", "cuda:99999999999", "mps"]
        {
            match name.parse::<Device>() {
                // An empty index is the one shape where digits are vacuously all there are.
                Ok(device) => panic!("{name:?} parsed as {device}"),
                Err(error) => assert!(error.to_string().contains("cpu, cuda:N or xpu:N")),
            }
        }
    }
}

//! What set-up fetches: every wheel with its version and the reason it is there.
//!
//! Versions are exact, so that a clean clone of next year gets what was tested. What torch itself brings along is pinned
//! by torch where it is native; its pure-Python dependencies float.

use clap::ValueEnum;

/// One wheel.
pub(crate) struct Pin {
    /// As pip understands it.
    pub(crate) requirement: &'static str,
    /// Whether pip fetches what the wheel asks for, too.
    pub(crate) dependencies: bool,
    /// Why we need it. Shown by `setup --list`.
    pub(crate) reason: &'static str,
}

const fn alone(requirement: &'static str, reason: &'static str) -> Pin {
    Pin { requirement, dependencies: false, reason }
}

const fn complete(requirement: &'static str, reason: &'static str) -> Pin {
    Pin { requirement, dependencies: true, reason }
}

/// A set of wheels that is fetched as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// The NIXL library and what building against it needs.
    Nixl,
    /// libtorch, as far as tch needs it on a CPU.
    Torch,
    /// The Python original, `dynamo.nixl_connect`.
    Python,
    /// Older NIXL releases, beside the one we use.
    NixlVersions,
    /// NVIDIA's compiler, to build for machines with a GPU. No test needs it, and `setup` alone does not fetch it.
    Cuda,
}

impl Group {
    /// Every group, in the order they are fetched.
    pub(crate) const EVERY: [Self; 5] =
        [Self::Nixl, Self::Torch, Self::Python, Self::NixlVersions, Self::Cuda];

    /// Those that the tests need.
    pub(crate) const ALL: [Self; 4] = [Self::Nixl, Self::Torch, Self::Python, Self::NixlVersions];

    /// The group's name: its option, its stamp, its row.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nixl => "nixl",
            Self::Torch => "torch",
            Self::Python => "python",
            Self::NixlVersions => "nixl-versions",
            Self::Cuda => "cuda",
        }
    }

    /// What it is for, how much comes over the line, and how long that takes on a fast line.
    pub(crate) const fn cost(self) -> &'static str {
        match self {
            Self::Nixl => "NIXL with UCX, and libclang to build against it: 83 MB, about 10 s",
            Self::Torch => "libtorch for tch: 527 MB, about 20 s",
            Self::Python => "the Python original with torch: 2 GB unless fetched before, about 1 min",
            Self::Cuda => "NVIDIA's compiler for `gpu-bundle`: 104 MB, about 5 s",
            Self::NixlVersions => "three older NIXL releases for the compatibility test: 180 MB, about 10 s",
        }
    }

    /// The wheels.
    pub(crate) const fn pins(self) -> &'static [Pin] {
        match self {
            Self::Nixl => {
                const {
                    &[
                        alone(
                            "nixl-cu13==1.5.1",
                            "the NIXL library, its UCX and its C API; loaded at run time",
                        ),
                        alone(
                            "libclang==18.1.1",
                            "nixl-sys generates its bindings with bindgen, which needs it",
                        ),
                    ]
                }
            }
            Self::Torch => {
                const {
                    &[
                        alone("torch==2.13.0", "libtorch; tch 0.26 wants exactly this one"),
                        alone("nvidia-cuda-cupti==13.0.85", "libtorch_cpu is linked against it, GPU or not"),
                        alone("nvidia-cuda-runtime==13.0.96", "the same"),
                    ]
                }
            }
            Self::Python => {
                const {
                    &[
                        complete(
                            "torch==2.13.0",
                            "nixl_connect imports torch, and that needs all its libraries",
                        ),
                        complete("pydantic==2.14.3", "nixl_connect's metadata model"),
                        complete("numpy==2.4.6; python_version >= '3.11'", "nixl_connect and nixl import it"),
                        complete("numpy==2.2.6; python_version < '3.11'", "the last one for Python 3.10"),
                        alone(
                            "ai-dynamo-runtime==1.6.1",
                            "holds dynamo/nixl_connect; its native module is not used",
                        ),
                        alone("nixl==1.5.1", "lets `import nixl` find nixl-cu13"),
                        alone(
                            "ai-dynamo==1.6.1",
                            "Dynamo's own transfer code, as the peer of interop_dynamo.rs; nothing else of it is imported",
                        ),
                        alone("msgspec==0.22.0", "ai-dynamo's embedding_transfer imports it"),
                        alone("safetensors==0.8.0", "the same"),
                    ]
                }
            }
            Self::NixlVersions => {
                const {
                    &[
                        alone("nixl-cu13==1.3.2", "the oldest release that is tested"),
                        alone("nixl-cu13==1.4.1", "the newest 1.4"),
                        alone("nixl-cu13==1.5.0", "the release before ours"),
                    ]
                }
            }
            Self::Cuda => {
                const {
                    // All of one version, which cudarc knows: it knows none beyond 13.4.
                    &[
                        alone("nvidia-cuda-nvcc==13.0.88", "compiles Candle's kernels"),
                        alone("nvidia-nvvm==13.0.88", "its back-end"),
                        alone("nvidia-cuda-crt==13.0.88", "its headers"),
                        alone("nvidia-cuda-cccl==13.0.85", "headers that the kernels include"),
                        alone("nvidia-cuda-runtime==13.0.96", "kernels are linked against it"),
                    ]
                }
            }
        }
    }

    /// The groups it can't do without.
    pub(crate) const fn needs(self) -> &'static [Self] {
        match self {
            Self::Python => &[Self::Nixl],
            _ => &[],
        }
    }

    /// A file in site-packages that is there when the group is; a stamp without it is not believed.
    pub(crate) const fn evidence(self) -> &'static str {
        match self {
            Self::Nixl | Self::NixlVersions => ".nixl_cu13.mesonpy.libs/libnixl_capi.so",
            Self::Torch => "torch/lib/libtorch_cpu.so",
            Self::Python => "dynamo/common/multimodal/embedding_transfer.py",
            Self::Cuda => "nvidia/cu13/bin/nvcc",
        }
    }

    /// Python that fails unless the group works. It runs after an installation, in the virtual environment.
    pub(crate) const fn trial(self) -> &'static str {
        match self {
            Self::Nixl => {
                "import ctypes, sysconfig; site = sysconfig.get_path('purelib'); \
                 ctypes.CDLL(site + '/.nixl_cu13.mesonpy.libs/libnixl_capi.so'); \
                 ctypes.CDLL(site + '/clang/native/libclang.so')"
            }
            Self::Torch => {
                "import ctypes, sysconfig; \
                 ctypes.CDLL(sysconfig.get_path('purelib') + '/torch/lib/libtorch_cpu.so')"
            }
            Self::Python => {
                "import dynamo.nixl_connect, dynamo.common.utils.media_nixl, msgspec, safetensors.torch"
            }
            Self::Cuda => {
                "import subprocess, sysconfig; \
                 subprocess.check_call([sysconfig.get_path('purelib') + '/nvidia/cu13/bin/nvcc', '--version'])"
            }
            // Several versions of one library don't go into one process; the test loads each in its own.
            Self::NixlVersions => "",
        }
    }

    /// What a finished set-up writes down, so that the next one sees a changed pin.
    pub(crate) fn stamp(self) -> String {
        self.pins().iter().map(|pin| format!("{}\n", pin.requirement)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wheel_is_pinned_and_says_why() {
        for pin in Group::EVERY.iter().flat_map(|group| group.pins()) {
            assert!(pin.requirement.contains("=="), "{}", pin.requirement);
            assert!(!pin.reason.is_empty(), "{}", pin.requirement);
        }
    }
}

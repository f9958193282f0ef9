//! [`Lab`]: makes connectors and worker processes of one transport, so that one suite serves them all.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use connect_core::transport::local::{DataPath, LocalConfig};
use connect_core::{Connector, ConnectorBuilder};

use crate::child::Worker;

/// How long a test waits for what must happen and is not itself the subject: far beyond what it takes on a
/// loaded machine with two cores, and still shorter than a run of CI.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What moves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The embedded transport.
    Local,
    /// The embedded transport, with every byte between processes over the socket.
    LocalStream,
    /// NIXL.
    #[cfg(feature = "nixl")]
    Nixl,
}

impl Transport {
    /// Every transport of this build that works on this machine.
    ///
    /// # Panics
    /// NIXL is missing, and `CONNECT_REQUIRE_NIXL` is set.
    pub fn available() -> Vec<Self> {
        let all = [
            Self::Local,
            Self::LocalStream,
            #[cfg(feature = "nixl")]
            Self::Nixl,
        ];
        all.into_iter().filter(|transport| transport.is_available()).collect()
    }

    /// Whether this machine has what it needs.
    ///
    /// # Panics
    /// NIXL is missing, and `CONNECT_REQUIRE_NIXL` is set.
    pub fn is_available(self) -> bool {
        match self {
            Self::Local | Self::LocalStream => true,
            #[cfg(feature = "nixl")]
            Self::Nixl => crate::require::nixl(),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::LocalStream => "local-stream",
            #[cfg(feature = "nixl")]
            Self::Nixl => "nixl",
        })
    }
}

/// Makes connectors and worker processes of one transport.
#[derive(Debug, Clone, Copy)]
pub struct Lab {
    transport: Transport,
    worker: &'static str,
}

impl Lab {
    /// A lab with this transport. `worker` is the program that a test knows as `env!("CARGO_BIN_EXE_worker")`.
    pub fn new(transport: Transport, worker: &'static str) -> Self {
        Self { transport, worker }
    }

    /// The transport.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Whether an offer that ends without its notification is parked until its agent is replaced.
    pub fn is_nixl(&self) -> bool {
        !matches!(self.transport, Transport::Local | Transport::LocalStream)
    }

    /// The start of a connector.
    pub fn builder(&self) -> ConnectorBuilder {
        match self.transport {
            Transport::Local => Connector::builder(),
            Transport::LocalStream => {
                Connector::builder().local(LocalConfig::default().data_path(DataPath::Stream))
            }
            #[cfg(feature = "nixl")]
            Transport::Nixl => {
                Connector::builder().nixl(connect_core::transport::nixl::NixlConfig::default())
            }
        }
    }

    /// A connector whose operations have [`PATIENCE`].
    ///
    /// # Errors
    /// It can't be built.
    pub fn connector(&self) -> Result<Connector> {
        Ok(self.builder().default_deadline(PATIENCE).build()?)
    }

    /// Two connectors.
    ///
    /// # Errors
    /// They can't be built.
    pub fn pair(&self) -> Result<(Connector, Connector)> {
        Ok((self.connector()?, self.connector()?))
    }

    /// A worker process with a connector of this transport.
    ///
    /// # Errors
    /// It does not start.
    pub fn worker(&self) -> Result<Worker> {
        self.worker_with(&[])
    }

    /// A worker process with a connector of this transport, and further arguments.
    ///
    /// # Errors
    /// It does not start.
    pub fn worker_with(&self, arguments: &[&str]) -> Result<Worker> {
        let transport = self.transport.to_string();
        Worker::rust(self.worker, &[&["--transport", &transport], arguments].concat())
    }
}

/// Makes each of these functions over `&Lab` a test for each transport of this build.
#[macro_export]
macro_rules! for_each_transport {
    ($($test:ident),* $(,)?) => {
        $crate::for_each_transport!(@one local, Local, [$($test),*]);
        $crate::for_each_transport!(@one local_stream, LocalStream, [$($test),*]);
        #[cfg(feature = "nixl")]
        $crate::for_each_transport!(@one nixl, Nixl, [$($test),*]);
    };
    (@one $module:ident, $transport:ident, [$($test:ident),*]) => {
        mod $module {
            $(
                #[test]
                fn $test() -> anyhow::Result<()> {
                    let transport = $crate::lab::Transport::$transport;
                    if !transport.is_available() {
                        return Ok(());
                    }
                    super::$test(&$crate::lab::Lab::new(transport, env!("CARGO_BIN_EXE_worker")))
                }
            )*
        }
    };
}

//! The control plane: what operators see of the gateway, and the few things they change in it.

pub mod events;
pub mod metrics;
pub mod moment;
pub mod port;
pub mod status;
#[allow(missing_docs)]
pub struct ControlParts {
    pub address: std::net::SocketAddr,
    pub socket: std::path::PathBuf,
    pub hostname: Box<str>,
    pub port: std::sync::Arc<dyn port::WorkerPort>,
    pub status: std::sync::Arc<status::Status>,
    pub workers: Vec<std::sync::Arc<metrics::WorkerMetrics>>,
    pub events: std::sync::Arc<events::EventCounters>,
}
#[allow(missing_docs)]
pub struct Control(std::net::SocketAddr);
#[allow(missing_docs)]
impl Control {
    pub fn start(p: ControlParts) -> std::io::Result<Control> {
        Ok(Control(p.address))
    }
    pub fn address(&self) -> std::net::SocketAddr {
        self.0
    }
    pub fn stop(self) {}
}

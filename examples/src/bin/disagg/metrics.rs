//! `/metrics` of every process, as Prometheus reads it.

use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::routing::get;
use connect_core::kv::metrics::{HISTOGRAMS, SECONDS_BUCKETS};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::wire::Line;

/// Requests by how they ended: `done`, or what failed.
const REQUESTS: &str = "router_requests_total";
/// Requests that are not over.
const ACTIVE: &str = "router_requests_active";
/// From the request to its first token.
const FIRST_TOKEN: &str = "router_first_token_seconds";

/// How often the exporter tidies up when nobody asks it.
const UPKEEP: Duration = Duration::from_secs(5);

/// What is measured in this process, from now on.
pub(crate) struct Exporter(PrometheusHandle);

impl Exporter {
    /// Begins to collect. Hand-offs that were started before are not described.
    pub(crate) fn install() -> Result<Self> {
        let mut builder = PrometheusBuilder::new();
        for (name, buckets) in HISTOGRAMS.into_iter().chain([(FIRST_TOKEN, SECONDS_BUCKETS)]) {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
        }
        let exporter = builder.install_recorder()?;
        let tidies = exporter.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                tidies.run_upkeep();
            }
        });
        Ok(Self(exporter))
    }

    /// Serves it; `publish` brings up to date what is not told when it happens.
    pub(crate) fn route(self, publish: impl Fn() + Clone + Send + Sync + 'static) -> Router {
        let render = move || {
            publish();
            std::future::ready(self.0.render())
        };
        Router::new().route("/metrics", get(render))
    }
}

/// The router's own.
pub(crate) fn describe_router() {
    describe_counter!(REQUESTS, Unit::Count, "Completions by how they ended");
    describe_gauge!(ACTIVE, Unit::Count, "Completions that are not over");
    describe_histogram!(FIRST_TOKEN, Unit::Seconds, "From a request to its first token");
    gauge!(ACTIVE).set(0.0);
}

/// A request, counted by its outcome when this is dropped.
pub(crate) struct Active {
    /// What it calls itself: one of a few words. The first counts.
    outcome: Option<String>,
}

impl Active {
    pub(crate) fn begin() -> Self {
        gauge!(ACTIVE).increment(1.0);
        Self { outcome: None }
    }

    /// What decode said of it.
    pub(crate) fn heard(&mut self, line: &Line) {
        match line {
            Line::Token(_) => {}
            Line::Done(done) => {
                histogram!(FIRST_TOKEN).record(done.timings.ttft);
                self.ended("done");
            }
            Line::Failed(failure) => self.ended(&failure.kind),
        }
    }

    pub(crate) fn ended(&mut self, outcome: &str) {
        self.outcome.get_or_insert_with(|| outcome.to_owned());
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| "gone".to_owned());
        counter!(REQUESTS, "outcome" => outcome).increment(1);
        gauge!(ACTIVE).decrement(1.0);
    }
}

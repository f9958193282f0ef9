//! The few lines of HTTP that all processes share.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use axum::Json;
use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Serves on a port of this host, 0 for one that the system chooses, and says which on standard output:
/// `listening on …`.
pub(crate) async fn serve(router: Router, port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("{address}"))?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, router).await?)
}

/// Asks a peer, and reads its answer.
pub(crate) async fn ask<T: DeserializeOwned>(
    client: &reqwest::Client,
    url: &str,
    question: &impl Serialize,
) -> Result<T> {
    let answer = client.post(url).json(question).send().await.with_context(|| format!("asking {url}"))?;
    let status = answer.status();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return Err(Busy.into());
    }
    if !status.is_success() {
        bail!("{url} says {status}: {}", answer.text().await.unwrap_or_default());
    }
    Ok(answer.json().await?)
}

/// A peer that has no room now, and would make its caller wait.
#[derive(Debug, thiserror::Error)]
#[error("the peer has no free blocks")]
pub(crate) struct Busy;

/// An error as an answer: what failed, to its first cause.
pub(crate) struct Refused(pub StatusCode, pub anyhow::Error);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": format!("{:#}", self.1) }))).into_response()
    }
}

impl<E: Into<anyhow::Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.into())
    }
}

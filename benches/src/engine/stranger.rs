//! Somebody else's agent, which sends an agent notifications that it never asked for (D16 of the original).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nixl_sys::NotificationMap;

use super::bare::agent;

/// How long the stranger lives on: UCX hands over what it queued only while both sides look.
const LIVES_ON: Duration = Duration::from_millis(500);

/// Sends the agent behind `blob` so many notifications that match no operation.
pub(super) fn notify(blob: &[u8], count: usize) -> Result<()> {
    let (stranger, _backend) = agent("stranger")?;
    let victim = stranger.load_remote_md(blob)?;
    let mut answers = NotificationMap::new()?;
    for number in 0..count {
        stranger.send_notification(&victim, format!("never-asked-for-{number}").as_bytes(), None)?;
        stranger.get_notifications(&mut answers, None)?;
    }
    let sent = Instant::now();
    while sent.elapsed() < LIVES_ON {
        stranger.get_notifications(&mut answers, None)?;
        thread::yield_now();
    }
    ensure!(answers.is_empty()?, "the victim answered");
    Ok(())
}

//! Positions, as rotations of pairs of elements.

use std::f64::consts::TAU;

use anyhow::{Result, ensure};
use candle_core::{D, Device, Tensor};

/// How fast which pair turns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rope {
    pub(crate) theta: f64,
    pub(crate) scaling: Option<Scaling>,
}

/// Slower turns for longer contexts than a model was first trained on, as Llama 3.1 has them (`rope_type` `llama3`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scaling {
    pub(crate) factor: f64,
    pub(crate) low_freq_factor: f64,
    pub(crate) high_freq_factor: f64,
    pub(crate) original_positions: f64,
}

impl Rope {
    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.theta.is_finite() && self.theta > 1.0, "rope_theta is {}", self.theta);
        if let Some(Scaling { factor, low_freq_factor, high_freq_factor, original_positions }) = self.scaling
        {
            let all = [factor, low_freq_factor, high_freq_factor, original_positions];
            ensure!(all.iter().all(|it| it.is_finite() && *it > 0.0), "rope_scaling has {all:?}");
            ensure!(
                low_freq_factor < high_freq_factor,
                "rope_scaling: low_freq_factor {low_freq_factor} is not below high_freq_factor {high_freq_factor}"
            );
        }
        Ok(())
    }

    /// Radians for each position, of each pair of a head's elements.
    pub(super) fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let plain = |pair: usize| self.theta.powf(-2.0 * pair as f64 / head_dim as f64);
        (0..head_dim / 2).map(|pair| self.scaled(plain(pair)) as f32).collect()
    }

    fn scaled(&self, frequency: f64) -> f64 {
        let Some(Scaling { factor, low_freq_factor, high_freq_factor, original_positions }) = self.scaling
        else {
            return frequency;
        };
        let turns = original_positions * frequency / TAU;
        let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
        frequency * (kept + (1.0 - kept) / factor)
    }
}

/// Cosines and sines of `count` positions from `past` on, `[count, head_dim / 2]`.
pub(super) fn rotation(frequencies: &[f32], past: usize, count: usize) -> Result<(Tensor, Tensor)> {
    let angles: Vec<f32> = (past..past + count)
        .flat_map(|position| frequencies.iter().map(move |frequency| position as f32 * frequency))
        .collect();
    let angles = Tensor::from_vec(angles, (count, frequencies.len()), &Device::Cpu)?;
    Ok((angles.cos()?, angles.sin()?))
}

/// Rotates pairs of elements by their position: `x` is `[heads, count, head_dim]`.
pub(super) fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    Ok(Tensor::cat(&[first, second], D::Minus1)?)
}

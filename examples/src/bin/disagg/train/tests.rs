//! Training, on a text that is learnt in seconds.

use anyhow::Result;

use super::*;

fn tiny() -> Config {
    Config { width: 16, ffn: 24, layers: 1, heads: 2, kv_heads: 1, head_dim: 8, ..Config::TRAINED }
}

fn options(steps: usize) -> Options {
    Options { out: PathBuf::new(), steps, batch: 4, length: 32, rate: 2e-2, seed: 1 }
}

fn corpus() -> Corpus {
    Corpus::of_text(&"a cache is read, and a block is freed.\n\n".repeat(60))
}

#[test]
fn some_steps_make_what_comes_next_better_known() -> Result<()> {
    let corpus = corpus();
    let mut training = Training::new(tiny(), &corpus, &options(30))?;
    let before = training.held_out_loss()?;
    assert!((before - 256f32.ln()).abs() < 0.5, "at first every byte is as likely as any other: {before}");
    for _ in 0..30 {
        training.step()?;
    }
    let after = training.held_out_loss()?;
    assert!(after < before - 1.5, "{before} -> {after}");
    Ok(())
}

#[test]
fn a_seed_gives_the_same_training() -> Result<()> {
    let corpus = corpus();
    let losses = |seed| -> Result<Vec<f32>> {
        let mut training = Training::new(tiny(), &corpus, &Options { seed, ..options(3) })?;
        (0..3).map(|_| training.step()).collect()
    };
    assert_eq!(losses(1)?, losses(1)?);
    assert_ne!(losses(1)?, losses(2)?);
    Ok(())
}

#[test]
fn what_is_kept_back_is_not_learnt() {
    let text: String = (0..100).map(|number| format!("paragraph {number}.\n\n")).collect();
    let corpus = Corpus::of_text(&text);
    let bytes =
        |tokens: &[u32]| String::from_utf8(tokens.iter().map(|it| *it as u8).collect()).expect("text");
    let (learnt, held_out) = (bytes(&corpus.learnt), bytes(&corpus.held_out));
    assert_eq!(held_out.lines().filter(|line| !line.is_empty()).count(), 5);
    for line in held_out.lines().filter(|line| !line.is_empty()) {
        assert!(!learnt.contains(line), "{line}");
    }
    assert_eq!(learnt.len() + held_out.len(), text.len());
}

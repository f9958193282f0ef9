//! Runs child processes: commands are shown before they run, and a failure names the command.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command with this process's terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", line(command));
    let status = command.status().with_context(|| format!("could not start {}", line(command)))?;
    finish(command, status)
}

/// Runs a command like [`run`], and hands each line of its standard output to `seen` after printing it.
pub(crate) fn run_seen(command: &mut Command, mut seen: impl FnMut(&str)) -> Result<()> {
    println!("$ {}", line(command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start {}", line(command)))?;
    if let Some(output) = child.stdout.take() {
        let mut out = std::io::stdout();
        for text in BufReader::new(output).split(b'\n') {
            let text = text?;
            out.write_all(&text)?;
            out.write_all(b"\n")?;
            seen(&String::from_utf8_lossy(&text));
        }
    }
    finish(command, child.wait()?)
}

/// Runs a command silently and returns its standard output; its standard error is part of the failure.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("could not start {}", line(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn finish(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// A command as a person would type it: the program's name, not its path, and the variables set for it.
fn line(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program()).to_string_lossy();
    let variables = command.get_envs().filter_map(|(key, value)| {
        Some(format!("{}={}", key.to_string_lossy(), quoted(&value?.to_string_lossy())))
    });
    let arguments = command.get_args().map(|argument| quoted(&argument.to_string_lossy()));
    let mut words: Vec<String> = variables.collect();
    words.push(name.into_owned());
    words.extend(arguments);
    words.join(" ")
}

/// A word as a shell takes it; plain where that is safe.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "-_=/.,:+@%".contains(letter);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_path_with_a_quote_stays_one_word() {
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(quoted("torch==2.13.0"), "torch==2.13.0");
        assert_eq!(quoted(""), "''");
    }
}

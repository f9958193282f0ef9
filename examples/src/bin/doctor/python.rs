//! Python with the original, and libtorch.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::finding::{Finding, Status};

const AREA: &str = "Python and libtorch";

/// Prints a version for each module, or why it can't be imported, on one line each.
const PROBE: &str = "
import importlib, platform, sys
out, sys.stdout = sys.stdout, sys.stderr
print('python', 'ok', platform.python_version(), file=out)
for name in ['torch', 'dynamo.nixl_connect']:
    try:
        module = importlib.import_module(name)
        print(name, 'ok', getattr(module, '__version__', 'importable'), file=out)
    except BaseException as error:
        print(name, 'no', f'{type(error).__name__}: {error}'.replace(chr(10), ' '), file=out)
";

pub(crate) fn examine() -> Vec<Finding> {
    let interpreter = connect_examples::python().unwrap_or_else(|| "python3".into());
    let mut findings = modules(&interpreter);
    findings.push(libtorch());
    findings
}

fn modules(interpreter: &Path) -> Vec<Finding> {
    let answer = Command::new(interpreter).args(["-c", PROBE]).output();
    let text = answer.map(|answer| String::from_utf8_lossy(&answer.stdout).into_owned()).unwrap_or_default();
    let mut findings: Vec<Finding> = text.lines().filter_map(|line| module(line, interpreter)).collect();
    if findings.is_empty() {
        findings.push(
            Finding::new(AREA, "python", Status::Missing, format!("{} does not run", interpreter.display()))
                .means("needed only to talk to Python workers from the tests and examples")
                .remedied_by("`cargo xtask setup`, or name one with CONNECT_PYTHON"),
        );
    }
    findings
}

fn module(line: &str, interpreter: &Path) -> Option<Finding> {
    let (name, rest) = line.split_once(' ')?;
    let (word, text) = rest.split_once(' ')?;
    let found = match name {
        "python" => format!("{text}, {}", interpreter.display()),
        _ => text.to_owned(),
    };
    if word == "ok" {
        return Some(Finding::new(AREA, name, Status::Ok, found));
    }
    let finding = Finding::new(AREA, name, Status::Missing, found)
        .means("needed only by Python peers started here; workers elsewhere bring their own")
        .remedied_by("`cargo xtask setup`, or `pip install ai-dynamo-runtime torch nixl-cu13`");
    Some(finding)
}

fn libtorch() -> Finding {
    const NAME: &str = "libtorch (LIBTORCH)";
    let Some(root) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        return Finding::new(AREA, NAME, Status::Missing, "not set")
            .means("needed only to build connect-tch")
            .remedied_by("`cargo xtask setup --torch`; cargo in this workspace then finds it by itself");
    };
    let library = root.join("lib/libtorch_cpu.so");
    if !library.exists() {
        return Finding::new(AREA, NAME, Status::Missing, format!("{} is not there", library.display()))
            .means("needed only to build connect-tch")
            .remedied_by("`cargo xtask setup --torch`, or point LIBTORCH at a libtorch 2.13");
    }
    let version = std::fs::read_to_string(root.join("version.py")).unwrap_or_default();
    let version = version.lines().find_map(|line| line.strip_prefix("__version__ = "));
    let version = version.map_or("version unknown", |version| version.trim_matches('\''));
    Finding::new(AREA, NAME, Status::Ok, format!("{version}, {}", root.display()))
}

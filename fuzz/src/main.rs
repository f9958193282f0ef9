//! One program for all targets: `CONNECT_FUZZ` names the target. What a target does is in `connect_core::fuzz`,
//! where a plain `cargo test` runs it too. `cargo xtask fuzz` builds and runs this.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod target {
    use std::sync::LazyLock;

    use connect_core::fuzz::{Meter, TARGETS, Target};

    #[global_allocator]
    static METER: Meter = Meter;

    static TARGET: LazyLock<&Target> = LazyLock::new(|| {
        let name = std::env::var("CONNECT_FUZZ").unwrap_or_default();
        TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            panic!("CONNECT_FUZZ must name one of {}", names.join(", "))
        })
    });

    libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
}

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("This was built without the fuzzer. Run `cargo xtask fuzz`.");
    std::process::exit(2);
}

//! Wrong use that must not compile. Each file under `ui` is one mistake, with what the compiler says to it.
//!
//! `TRYBUILD=overwrite cargo test -p connect-tests --test misuse` writes that anew; look at what it wrote.

// Nothing here depends on the transport, and compiling NIXL's binding once more takes a minute.
#![cfg(not(feature = "nixl"))]

#[test]
fn wrong_use_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}

//! Set-up and test driver.
fn main() {}

//! Two owners of one target would see each other's writes.

use connect_core::DescriptorMut;

fn main() {
    let target = DescriptorMut::new(vec![0u8; 8]).unwrap();
    let again = target.clone();
    drop((target, again));
}

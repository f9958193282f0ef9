//! What a receive gives: [`NamedTensors`].

use std::collections::HashMap;
use std::ops::Index;

use crate::op::Report;

/// The tensors of one receive, by name and in the sender's order. `T` is the framework's tensor.
///
/// ```no_run
/// # fn example(tensors: connect_core::NamedTensors<Vec<f32>>) {
/// let k = &tensors["k"]; // panics when there is none; `get` does not
/// for (name, tensor) in &tensors {
///     println!("{name}: {tensor:?}");
/// }
/// let by_name: std::collections::HashMap<_, _> = tensors.into();
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct NamedTensors<T> {
    tensors: Vec<(String, T)>,
    report: Report,
}

impl<T> NamedTensors<T> {
    /// For adapters: tensors that were received under the names of an envelope, which are unique.
    pub fn new(tensors: Vec<(String, T)>, report: Report) -> Self {
        Self { tensors, report }
    }

    /// The tensor of this name. Looks through the list; a map is one `into` away.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.tensors.iter().find(|(own, _)| own == name).map(|(_, tensor)| tensor)
    }

    /// Names and tensors, in the sender's order.
    pub fn iter(&self) -> std::slice::Iter<'_, (String, T)> {
        self.tensors.iter()
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// What was moved, from where, and how long it took.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

impl<T> Index<&str> for NamedTensors<T> {
    type Output = T;

    /// # Panics
    /// If there is no tensor of this name.
    fn index(&self, name: &str) -> &T {
        self.get(name).unwrap_or_else(|| panic!("no tensor {name:?} was received"))
    }
}

impl<T> IntoIterator for NamedTensors<T> {
    type Item = (String, T);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a NamedTensors<T> {
    type Item = &'a (String, T);
    type IntoIter = std::slice::Iter<'a, (String, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T> From<NamedTensors<T>> for HashMap<String, T> {
    fn from(named: NamedTensors<T>) -> Self {
        named.tensors.into_iter().collect()
    }
}

//! What a receive yields: [`NamedTensors`].

use std::collections::HashMap;
use std::ops::Index;

use candle_core::Tensor;
use connect_core::Report;

/// The tensors of one receive, by name and in the sender's order.
///
/// ```no_run
/// # fn example(tensors: connect_candle::NamedTensors) {
/// let k = &tensors["k"]; // panics when there is none; `get` does not
/// for (name, tensor) in &tensors {
///     println!("{name}: {:?}", tensor.shape());
/// }
/// let weights: std::collections::HashMap<_, _> = tensors.into(); // what `VarBuilder::from_tensors` takes
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct NamedTensors {
    tensors: Vec<(String, Tensor)>,
    report: Report,
}

impl NamedTensors {
    /// Names are unique: the envelope they come from was checked.
    pub(crate) fn new(tensors: Vec<(String, Tensor)>, report: Report) -> Self {
        Self { tensors, report }
    }

    /// The tensor of this name. Looks through the list; a map is one `into` away.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|(own, _)| own == name).map(|(_, tensor)| tensor)
    }

    /// Names and tensors, in the sender's order.
    pub fn iter(&self) -> std::slice::Iter<'_, (String, Tensor)> {
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

impl Index<&str> for NamedTensors {
    type Output = Tensor;

    /// # Panics
    /// If there is no tensor of this name.
    fn index(&self, name: &str) -> &Tensor {
        self.get(name).unwrap_or_else(|| panic!("no tensor {name:?} was received"))
    }
}

impl IntoIterator for NamedTensors {
    type Item = (String, Tensor);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter()
    }
}

impl<'a> IntoIterator for &'a NamedTensors {
    type Item = &'a (String, Tensor);
    type IntoIter = std::slice::Iter<'a, (String, Tensor)>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<NamedTensors> for HashMap<String, Tensor> {
    fn from(named: NamedTensors) -> Self {
        named.tensors.into_iter().collect()
    }
}

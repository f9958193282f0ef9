//! How documents from peers are read: bounded, field by field, with errors that name the field.
//!
//! A derived reader takes care of unknown, missing and duplicate fields. What it leaves open is closed
//! here: it would also take an array for an object, its lists grow with the document, and its type errors
//! don't say which field they are about.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};

use super::MetadataError;

/// Longest text of a peer's that an error message repeats. Enough for any real field name or number.
const MAX_QUOTED_CHARS: usize = 256;

/// Reads a document of at most `max` bytes. The length is checked first, so that a longer one costs nothing.
pub(crate) fn parse<'a, T: Deserialize<'a>>(document: &'a [u8], max: usize) -> Result<T, MetadataError> {
    if document.len() > max {
        return Err(MetadataError::TooLarge { field: "the document", len: document.len(), max });
    }
    serde_json::from_slice(document).map_err(|error| MetadataError::Json(quoted(&error.to_string())))
}

/// A peer's text made fit for a log line: one line, and not long.
pub(crate) fn quoted(text: &str) -> String {
    let mut chars = text.chars();
    let mut short = String::new();
    for c in chars.by_ref().take(MAX_QUOTED_CHARS) {
        if c.is_control() {
            short.extend(c.escape_default());
        } else {
            short.push(c);
        }
    }
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

/// A `T` written as a JSON object, and in no other way.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// The first elements of a list, up to a limit, and how many there were in all.
pub(super) struct List<T> {
    pub(super) items: Vec<T>,
    pub(super) count: usize,
}

/// Reads a list and keeps at most `max` elements; the rest is counted, not kept.
pub(super) fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
    field: &'static str,
    max: usize,
) -> Result<List<T>, D::Error> {
    struct Elements<T> {
        field: &'static str,
        max: usize,
        item: PhantomData<T>,
    }
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<T> {
        type Value = List<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "`{}` to be a list", self.field)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List<T>, A::Error> {
            // No capacity up front: the length a document announces is not to be trusted.
            let mut items = Vec::new();
            while items.len() < self.max {
                let at = |e: A::Error| A::Error::custom(format_args!("{}[{}]: {e}", self.field, items.len()));
                match seq.next_element().map_err(at)? {
                    Some(item) => items.push(item),
                    None => return Ok(List { count: items.len(), items }),
                }
            }
            let mut count = items.len();
            while seq.next_element::<IgnoredAny>()?.is_some() {
                count += 1;
            }
            Ok(List { items, count })
        }
    }
    deserializer.deserialize_seq(Elements { field, max, item: PhantomData })
}

/// Reads an unsigned integer, which is never taken from a fraction, an exponent or a string.
pub(super) fn unsigned<'de, D: Deserializer<'de>>(d: D, field: &'static str) -> Result<u64, D::Error> {
    struct Unsigned(&'static str);
    impl Visitor<'_> for Unsigned {
        type Value = u64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "`{}` to be an unsigned 64-bit integer", self.0)
        }
        fn visit_u64<E: Error>(self, value: u64) -> Result<u64, E> {
            Ok(value)
        }
        fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
            u64::try_from(value).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
        }
    }
    d.deserialize_u64(Unsigned(field))
}

/// Reads a string.
pub(super) fn text<'de, D: Deserializer<'de>>(d: D, field: &'static str) -> Result<String, D::Error> {
    struct Text(&'static str);
    impl Visitor<'_> for Text {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "`{}` to be a string", self.0)
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
        fn visit_string<E: Error>(self, text: String) -> Result<String, E> {
            Ok(text)
        }
    }
    d.deserialize_string(Text(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_text_can_neither_break_a_log_line_nor_fill_the_log() {
        let error = quoted(&format!("unknown field `a\nb\x1b[2J{}`", "x".repeat(1 << 20)));
        assert!(error.starts_with("unknown field `a\\nb\\u{1b}[2Jxx") && error.ends_with('…'));
        assert!(error.len() < 300);
    }
}

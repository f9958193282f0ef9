//! Free-form values inside an envelope, with a bound on what they cost to hold.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Most values and keys in one envelope's extra fields, at all levels together.
///
/// A value of one digit takes 2 bytes in a document and 32 in memory; at this number that is 2 MB. The
/// largest real ones, timestamps of a video's sampled frames, are a few thousand.
const MAX_VALUES: usize = 65_536;

/// Most bytes of text in one envelope's extra fields, keys and strings together.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Deepest nesting. Deeper than any table or list of records, and far from the end of the stack.
const MAX_DEPTH: usize = 32;

/// Reads a value within the bounds above. Duplicate keys are refused at every level.
pub(super) fn value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let mut budget = Budget { values: MAX_VALUES, text: MAX_TEXT_BYTES };
    Bounded { budget: &mut budget, depth: MAX_DEPTH }.deserialize(deserializer)
}

/// Reads an object within the bounds above.
pub(super) fn object<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, Value>, D::Error> {
    match value(d)? {
        Value::Object(fields) => Ok(fields.into_iter().collect()),
        _ => Err(D::Error::custom("invalid type: expected `extra` to be an object")),
    }
}

struct Budget {
    values: usize,
    text: usize,
}

impl Budget {
    fn spend<E: Error>(&mut self, values: usize, text: usize) -> Result<(), E> {
        let over = |what, max| E::custom(format_args!("the extra fields have more than {max} {what}"));
        self.values = self.values.checked_sub(values).ok_or_else(|| over("values", MAX_VALUES))?;
        self.text = self.text.checked_sub(text).ok_or_else(|| over("bytes of text", MAX_TEXT_BYTES))?;
        Ok(())
    }
}

struct Bounded<'a> {
    budget: &'a mut Budget,
    depth: usize,
}

impl Bounded<'_> {
    fn leaf<E: Error>(self, value: impl Into<Value>, text: usize) -> Result<Value, E> {
        self.budget.spend(1, text)?;
        Ok(value.into())
    }

    /// One level further down, paid from the same budget.
    fn inner<E: Error>(&mut self) -> Result<Bounded<'_>, E> {
        let too_deep = || E::custom(format_args!("the extra fields are nested more than {MAX_DEPTH} deep"));
        let depth = self.depth.checked_sub(1).ok_or_else(too_deep)?;
        Ok(Bounded { budget: self.budget, depth })
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.leaf(Value::Null, 0)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.leaf(Value::Null, 0)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.leaf(value, 0)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.leaf(value, 0)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.leaf(value, 0)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("JSON has no such number"))?;
        self.leaf(number, 0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.leaf(text, text.len())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        let len = text.len();
        self.leaf(text, len)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        self.budget.spend(1, 0)?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self.inner()?)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        self.budget.spend(1, 0)?;
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            self.budget.spend(1, key.len())?;
            let value = map.next_value_seed(self.inner()?)?;
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate field `{key}`")));
            }
            fields.insert(key, value);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Value, serde_json::Error> {
        value(&mut serde_json::Deserializer::from_str(json))
    }

    #[test]
    fn any_json_value_is_read_as_it_is() {
        let json = r#"{"a":[null,true,-1,18446744073709551615,0.5,"text",{}],"b":{"c":[]}}"#;
        assert_eq!(read(json).unwrap(), serde_json::from_str::<Value>(json).unwrap());
    }

    #[test]
    fn every_number_comes_back_as_the_same() {
        let mut bits = 1u64;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = f64::from_bits(bits);
            if number.is_finite() {
                let read = read(&serde_json::to_string(&number).unwrap()).unwrap();
                assert_eq!(read.as_f64().map(f64::to_bits), Some(bits), "{number:e}");
            }
        }
    }

    #[test]
    fn what_grows_in_memory_is_refused() {
        let many = format!("[{}0]", "0,".repeat(MAX_VALUES));
        assert!(read(&many).unwrap_err().to_string().contains("more than 65536 values"));
        let long = format!("\"{}\"", "x".repeat(MAX_TEXT_BYTES + 1));
        assert!(read(&long).unwrap_err().to_string().contains("bytes of text"));
        let deep = format!("{}{}", "[".repeat(MAX_DEPTH + 2), "]".repeat(MAX_DEPTH + 2));
        assert!(read(&deep).unwrap_err().to_string().contains("32 deep"));
        assert!(read(&deep[1..deep.len() - 1]).is_err(), "an empty list still asks for its first element");
        assert!(read(&deep[2..deep.len() - 2]).is_ok());
    }

    #[test]
    fn duplicate_keys_are_refused_at_every_level() {
        assert!(read(r#"{"a":{"b":1,"b":2}}"#).unwrap_err().to_string().contains("duplicate field `b`"));
    }
}

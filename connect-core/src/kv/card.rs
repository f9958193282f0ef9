//! [`KvIdentity`] and [`PoolCard`]: what two processes must agree on before a byte moves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{KvError, KvLayout};
use crate::MetadataError;
use crate::blocks::{BlockCard, MAX_CARD_BYTES};
use crate::wire::json;

/// The hand-off protocol's version. Not that of this crate: an upgrade must not part a fleet in two.
pub const PROTOCOL: u32 = 1;

/// Facts on a card, and the longest of them: enough for any engine, and little to read.
const MAX_FACTS: usize = 256;
const MAX_FACT_BYTES: usize = 1024;

/// Whose cache a block is: two pools with another of any of these must not exchange blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct KvIdentity {
    /// The model's name.
    pub model: String,
    /// A digest of its weights: the same name with other weights makes other caches.
    pub weights: String,
    /// Whatever else must agree, by name: the base of the rotary embedding, the scales of a quantised cache, a layout
    /// that is the engine's own.
    pub facts: BTreeMap<String, String>,
}

impl KvIdentity {
    /// Of a model, by name and digest.
    pub fn new(model: impl Into<String>, weights: impl Into<String>) -> Self {
        Self { model: model.into(), weights: weights.into(), facts: BTreeMap::new() }
    }

    /// And one thing more that must agree.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.facts.insert(name.into(), value.to_string());
        self
    }

    /// All that is compared, by name, the most telling first.
    fn facts(&self, layout: &KvLayout) -> Vec<(String, String)> {
        let mut facts = vec![
            ("protocol".to_owned(), PROTOCOL.to_string()),
            ("model".to_owned(), self.model.clone()),
            ("weights".to_owned(), self.weights.clone()),
            ("dtype".to_owned(), layout.dtype.to_string()),
            ("layers".to_owned(), layout.layers.to_string()),
            ("kv_heads".to_owned(), layout.kv_heads.to_string()),
            ("k_head_dim".to_owned(), layout.k_head_dim.to_string()),
            ("v_head_dim".to_owned(), layout.v_head_dim.to_string()),
            ("block_tokens".to_owned(), layout.block_tokens.to_string()),
            ("within_block".to_owned(), layout.order.within_block().to_owned()),
        ];
        facts.extend(self.facts.iter().map(|(name, value)| (format!("x-{name}"), value.clone())));
        facts
    }
}

/// What a peer needs to know of a pool, once. Exchange them over any channel, both ways, before the first hand-off.
///
/// It is read in two steps: first the facts, which are compared with one's own by name; the addresses are looked at only
/// when all agree (P5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolCard {
    /// The engine whose pool it is: new with each start (P4).
    engine: String,
    facts: Vec<(String, String)>,
    /// A [`BlockCard`], unread.
    blocks: String,
}

impl PoolCard {
    pub(super) fn new(engine: String, identity: &KvIdentity, layout: &KvLayout, blocks: &BlockCard) -> Self {
        Self { engine, facts: identity.facts(layout), blocks: blocks.to_json() }
    }

    /// Reads a card: its outer form only.
    ///
    /// # Errors
    /// [`KvError::Malformed`].
    pub fn from_json(document: &str) -> Result<Self, KvError> {
        let max = 2 * MAX_CARD_BYTES;
        let json::Object(card) = json::parse::<json::Object<Self>>(document.as_bytes(), max)?;
        let is_long = |text: &str| text.len() > MAX_FACT_BYTES;
        let facts = &card.facts;
        if facts.len() > MAX_FACTS
            || is_long(&card.engine)
            || facts.iter().any(|(a, b)| is_long(a) || is_long(b))
        {
            let reason = format!("more than {MAX_FACTS}, or one of more than {MAX_FACT_BYTES} bytes");
            return Err(MetadataError::Field { field: "facts", reason }.into());
        }
        Ok(card)
    }

    /// Writes the card.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a card is made of strings only")
    }

    /// The engine whose pool it is.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// What the peer says of its pool, by name.
    pub fn facts(&self) -> &[(String, String)] {
        &self.facts
    }

    /// Compares the card with one's own pool, and only then reads where its blocks are.
    ///
    /// # Errors
    /// [`KvError::Incompatible`] with the first field that differs; [`KvError::Malformed`].
    pub fn check(&self, identity: &KvIdentity, layout: &KvLayout) -> Result<BlockCard, KvError> {
        let ours = identity.facts(layout);
        let find = |facts: &[(String, String)], name: &str| {
            facts.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
        };
        let missing = || "nothing".to_owned();
        let names = ours.iter().chain(&self.facts).map(|(name, _)| name);
        for name in names {
            let (ours, theirs) = (find(&ours, name), find(&self.facts, name));
            if ours != theirs {
                return Err(KvError::Incompatible {
                    field: json::quoted(name),
                    ours: ours.unwrap_or_else(missing),
                    theirs: theirs.map_or_else(missing, |theirs| json::quoted(&theirs)),
                });
            }
        }
        let card = BlockCard::from_json(&self.blocks)?;
        // The facts said so; the addresses must keep to it.
        let expected = layout.block_layout()?;
        let sizes = |layout: &crate::blocks::BlockLayout| {
            layout.parts().iter().map(|part| part.size).collect::<Vec<_>>()
        };
        if sizes(card.layout()) != sizes(&expected) {
            let reason = "the parts are not as long as the facts say".to_owned();
            return Err(MetadataError::Field { field: "blocks", reason }.into());
        }
        Ok(card)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::BlockOrder;
    use crate::{Connector, DType};

    fn identity() -> KvIdentity {
        KvIdentity::new("llama", "blake3:00").with("rope_theta", 10_000)
    }

    #[test]
    fn p5_the_field_that_differs_is_named_and_no_address_is_read_before() {
        let connector = Connector::local().unwrap();
        let layout = KvLayout::new(2, 4, 16, 2, 8, DType::F32);
        let pool = connector.block_pool(layout.block_layout().unwrap()).wait().unwrap();
        let card = PoolCard::new("e".to_owned(), &identity(), &layout, &pool.card().wait().unwrap());
        let card = PoolCard::from_json(&card.to_json()).unwrap();
        assert!(card.check(&identity(), &layout).is_ok());
        // Where blocks lie, and how many there are, is each side's own.
        let other = KvLayout { blocks: 9, ..layout }.with_order(BlockOrder::LayerMajorNhd);
        assert!(card.check(&identity(), &other).is_ok());

        let differs = |identity: KvIdentity, layout: KvLayout| match card.check(&identity, &layout) {
            Err(KvError::Incompatible { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(differs(KvIdentity { model: "qwen".into(), ..identity() }, layout), "model");
        assert_eq!(differs(KvIdentity { weights: "blake3:01".into(), ..identity() }, layout), "weights");
        assert_eq!(differs(identity().with("rope_theta", 500_000), layout), "x-rope_theta");
        assert_eq!(differs(identity().with("scale", 1), layout), "x-scale");
        assert_eq!(differs(KvIdentity { facts: BTreeMap::new(), ..identity() }, layout), "x-rope_theta");
        assert_eq!(differs(identity(), KvLayout { dtype: DType::BF16, ..layout }), "dtype");
        assert_eq!(differs(identity(), KvLayout { layers: 3, ..layout }), "layers");
        assert_eq!(differs(identity(), KvLayout { kv_heads: 1, ..layout }), "kv_heads");
        assert_eq!(differs(identity(), KvLayout { block_tokens: 32, ..layout }), "block_tokens");
        assert_eq!(differs(identity(), layout.with_order(BlockOrder::LayerMajorHnd)), "within_block");

        // Damaged addresses are not looked at while a fact differs, and are an error when none does.
        let damaged = PoolCard { blocks: "not a card".to_owned(), ..card.clone() };
        let mismatch = damaged.check(&identity(), &KvLayout { layers: 3, ..layout });
        assert!(matches!(mismatch, Err(KvError::Incompatible { .. })));
        assert!(matches!(damaged.check(&identity(), &layout), Err(KvError::Malformed(_))));
        // Addresses that are not what the facts say.
        let liar = KvLayout::new(2, 4, 16, 2, 4, DType::F32);
        let pool = connector.block_pool(liar.block_layout().unwrap()).wait().unwrap();
        let liar = PoolCard::new("e".to_owned(), &identity(), &layout, &pool.card().wait().unwrap());
        assert!(matches!(liar.check(&identity(), &layout), Err(KvError::Malformed(_))));
    }

    #[test]
    fn p5_cards_that_are_none_are_refused() {
        for document in
            ["", "[]", "{}", "{\"engine\":1}", "{\"engine\":\"e\",\"facts\":[],\"blocks\":\"\",\"more\":1}"]
        {
            assert!(matches!(PoolCard::from_json(document), Err(KvError::Malformed(_))), "{document}");
        }
        let long =
            format!("{{\"engine\":\"e\",\"facts\":[[\"a\",\"{}\"]],\"blocks\":\"\"}}", "x".repeat(2000));
        assert!(PoolCard::from_json(&long).is_err());
    }
}

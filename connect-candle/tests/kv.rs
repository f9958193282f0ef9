//! KV caches of Candle models in and out of pools: tokens in every order, an engine's own tensors, candle_nn's caches.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use connect_candle::TensorError;
use connect_candle::kv::{export_layer, import_layer, paged_pool};
use connect_core::kv::{BlockOrder, HandOff, HandOffConfig, KvIdentity, KvLayout, KvPool};
use connect_core::{Connector, DType as D};

const ORDERS: [BlockOrder; 3] =
    [BlockOrder::BlockMajor, BlockOrder::LayerMajorNhd, BlockOrder::LayerMajorHnd];

fn layout(order: BlockOrder) -> KvLayout {
    KvLayout::new(2, 16, 4, 3, 8, D::F32).with_v_head_dim(6).with_order(order)
}

fn pool(order: BlockOrder) -> KvPool {
    KvPool::new(&Connector::local().unwrap(), KvIdentity::new("m", "w"), layout(order)).wait().unwrap()
}

fn random(tokens: usize, dim: usize) -> Tensor {
    Tensor::rand(0f32, 1., (3, tokens, dim), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn tokens_come_out_of_blocks_as_they_went_in_whatever_the_order() {
    for order in ORDERS {
        let (pool, layout) = (pool(order), layout(order));
        for tokens in [1, 3, 4, 5, 8, 13] {
            let mut lease = pool.allocate(tokens).unwrap();
            let layers: Vec<_> = (0..2).map(|_| (random(20, 8), random(20, 6))).collect();
            for (layer, (k, v)) in (0..).zip(&layers) {
                export_layer(&mut lease, &layout, layer, k, v, 5..5 + tokens).unwrap();
            }
            for (layer, (k, v)) in (0..).zip(&layers) {
                let (k2, v2) = import_layer(&lease, &layout, layer, tokens).unwrap();
                assert_eq!(k2.dims(), [3, tokens, 8]);
                assert_eq!(values(&k2), values(&k.narrow(1, 5, tokens).unwrap()), "{order} {tokens}");
                assert_eq!(values(&v2), values(&v.narrow(1, 5, tokens).unwrap()), "{order} {tokens}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_its_layout_is_refused_by_name() {
    let (pool, layout) = (pool(BlockOrder::BlockMajor), layout(BlockOrder::BlockMajor));
    let mut lease = pool.allocate(8).unwrap();
    let mut refused =
        |k: &Tensor, v: &Tensor, tokens| match export_layer(&mut lease, &layout, 0, k, v, tokens) {
            Err(error @ TensorError::Kv { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        };
    let (k, v) = (random(8, 8), random(8, 6));
    assert!(refused(&k, &v, 0..9).contains("9 tokens do not fit into 8"));
    assert!(refused(&k, &v, 4..12).contains("it has 8 tokens"));
    assert!(refused(&k, &k, 0..8).contains("[3, tokens, 6]"));
    assert!(refused(&k.to_dtype(DType::F16).unwrap(), &v, 0..8).contains("its elements are F16"));
    let missing = import_layer(&lease, &layout, 0, 9).unwrap_err().to_string();
    assert!(missing.contains("block 2 of layer 0"), "{missing}");
    assert!(import_layer(&lease, &layout, 2, 8).unwrap_err().to_string().contains("layer 2"));
}

#[test]
fn an_engine_s_own_tensors_are_the_pool_and_nothing_is_copied() {
    let order = BlockOrder::LayerMajorNhd;
    let tensors = || -> Vec<(Tensor, Tensor)> {
        let one = |dim: usize| Tensor::rand(0f32, 1., (16, 4, 3, dim), &Device::Cpu).unwrap();
        (0..2).map(|_| (one(8), one(6))).collect()
    };
    let (here, there) = (tensors(), tensors());
    let made = |tensors: &[(Tensor, Tensor)]| {
        let connector = Connector::local().unwrap();
        // SAFETY: nobody but the hand-off below is at these tensors.
        unsafe { paged_pool(&connector, KvIdentity::new("m", "w"), layout(order), tensors) }.wait().unwrap()
    };
    let config = HandOffConfig::default();
    let (p, d) =
        (HandOff::start(made(&here), config).unwrap(), HandOff::start(made(&there), config).unwrap());
    p.meet(&d.pool().card().wait().unwrap()).unwrap();
    d.meet(&p.pool().card().wait().unwrap()).unwrap();
    let source = p.pool().blocks().take_these(&[3, 9]).unwrap();
    let offer = p.offer("r", source, 8, None).wait().unwrap();
    let lease = d.pool().blocks().take_these(&[0, 1]).unwrap();
    let fetched = d.track(offer.ticket().clone()).unwrap().fetch(lease).wait().unwrap();
    for ((k, v), (k2, v2)) in here.iter().zip(&there) {
        for (from, to) in [(3, 0), (9, 1)] {
            for (a, b) in [(k, k2), (v, v2)] {
                assert_eq!(values(&a.get(from).unwrap()), values(&b.get(to).unwrap()));
            }
        }
        assert_ne!(
            values(&k.get(2).unwrap()),
            values(&k2.get(2).unwrap()),
            "the other blocks are left alone"
        );
    }
    drop(fetched);

    let connector = Connector::local().unwrap();
    let wrong = |tensors: &[(Tensor, Tensor)], order| {
        // SAFETY: it is refused before anybody looks at the memory.
        unsafe { paged_pool(&connector, KvIdentity::new("m", "w"), layout(order), tensors) }
            .wait()
            .unwrap_err()
    };
    assert!(wrong(&here[..1], order).to_string().contains("1 layers"));
    assert!(wrong(&here, BlockOrder::LayerMajorHnd).to_string().contains("16 blocks of 4 tokens"));
    let turned: Vec<_> = here.iter().map(|(k, v)| (k.t().unwrap().t().unwrap(), v.clone())).collect();
    assert!(wrong(&turned, BlockOrder::BlockMajor).to_string().contains("block-major pool is one tensor"));
}

#[cfg(feature = "nn")]
#[test]
fn the_caches_of_candle_nn_are_emptied_and_filled() {
    use candle_nn::kv_cache::{ConcatKvCache, KvCache};
    use connect_candle::kv::nn::{ExportCache, ImportCache};

    let (pool, layout) = (pool(BlockOrder::BlockMajor), layout(BlockOrder::BlockMajor));
    let (k, v) = (random(10, 8).unsqueeze(0).unwrap(), random(10, 6).unsqueeze(0).unwrap());
    let mut lease = pool.allocate(10).unwrap();
    assert!(KvCache::new(2, 32).export(&mut lease, &layout, 0).is_err(), "an empty one");

    let mut cache = KvCache::new(2, 32);
    cache.append(&k.contiguous().unwrap(), &v.contiguous().unwrap()).unwrap();
    assert_eq!(cache.export(&mut lease, &layout, 0).unwrap(), 10);
    let mut filled = ConcatKvCache::new(2);
    filled.import(&lease, &layout, 0, 10).unwrap();
    assert_eq!(values(filled.k().unwrap()), values(&k));

    let mut lease = pool.allocate(10).unwrap();
    assert_eq!(filled.export(&mut lease, &layout, 1).unwrap(), 10);
    let mut again = KvCache::new(2, 32);
    again.import(&lease, &layout, 1, 10).unwrap();
    assert_eq!(values(&again.k().unwrap().unwrap()), values(&k));
    assert_eq!(values(&again.v().unwrap().unwrap()), values(&v));
    // And it goes on from there.
    again.append(&random(1, 8).unsqueeze(0).unwrap(), &random(1, 6).unsqueeze(0).unwrap()).unwrap();
    assert_eq!(again.current_seq_len(), 11);
}

#[test]
fn a_lease_of_another_layout_is_refused_and_nothing_panics() {
    let connector = Connector::local().unwrap();
    let own = KvLayout::new(2, 8, 16, 2, 4, connect_core::DType::F32);
    let pool = KvPool::new(&connector, KvIdentity::new("m", "w"), own).wait().unwrap();
    let mut lease = pool.allocate(40).unwrap();
    let other = |heads: u32, dim: u32, tokens: u32, layers: u32| {
        KvLayout::new(layers, 8, tokens, heads, dim, connect_core::DType::F32)
    };
    for layout in
        [other(4, 4, 16, 2), other(2, 8, 16, 2), other(2, 4, 8, 2), other(2, 4, 0, 2), other(2, 4, 16, 9)]
    {
        for layout in [layout, layout.with_order(BlockOrder::LayerMajorHnd)] {
            let shape = (layout.kv_heads as usize, 40, layout.k_head_dim as usize);
            let tensor = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            for layer in [layout.layers - 1, layout.layers, u32::MAX] {
                let exported = export_layer(&mut lease, &layout, layer, &tensor, &tensor, 0..40);
                let imported = import_layer(&lease, &layout, layer, 40);
                assert!(matches!(exported, Err(TensorError::Kv { .. })), "{layout:?} {layer}: {exported:?}");
                assert!(matches!(imported, Err(TensorError::Kv { .. })), "{layout:?} {layer}");
            }
        }
    }
}

use super::super::test_files::{Tensor, ramp, write};
use super::*;
use half::f16;
use safetensors::Dtype;

const EMBED_TOKENS: &str = "language_model.model.decoder.embed_tokens.weight";

fn open(tensors: &[Tensor]) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "model.safetensors", tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks(2)
        .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
        .collect()
}

#[test]
fn canonical_names_resolve_whatever_revision_wrote_the_file() {
    for (canonical, stored) in [
        ("query_tokens", "query_tokens"),
        ("query_tokens", "model.query_tokens"),
        ("query_tokens", "blip.query_tokens"),
        (
            "qformer.layernorm.weight",
            "qformer.embeddings.layernorm.weight",
        ),
        (
            "qformer.layernorm.bias",
            "module.qformer.embeddings.LayerNorm.bias",
        ),
        (
            "language_model.model.decoder.layers.3.fc1.weight",
            "language_model.decoder.layers.3.fc1.weight",
        ),
        (
            "language_model.model.decoder.layers.3.fc1.weight",
            "model.language_model.decoder.layers.3.fc1.weight",
        ),
        (
            "embeddings.word_embeddings.weight",
            "qformer.embeddings.word_embeddings.weight",
        ),
        ("vision_projection.bias", "vision_proj.bias"),
        ("text_projection.weight", "text_proj.weight"),
        ("language_projection.weight", "opt_proj.weight"),
        (
            "qformer.encoder.layer.0.attention.output.LayerNorm.weight",
            "qformer.encoder.layer.0.attention.output.LayerNorm.gamma",
        ),
    ] {
        let (_folder, checkpoint) = open(&[ramp(stored, &[2, 3], 0.0), ramp("other", &[1], 0.0)]);
        assert_eq!(checkpoint.resolve(canonical), Some(stored));
        let weight = checkpoint.weight(canonical, &[2, 3]).unwrap();
        assert_eq!(weight.name(), canonical);
        assert_eq!(weight.to_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(checkpoint.unused([canonical]), ["other"]);
    }
}

#[test]
fn the_canonical_name_wins_over_aliases() {
    let (_folder, checkpoint) = open(&[
        ramp("model.query_tokens", &[1], 1.0),
        ramp("query_tokens", &[1], 2.0),
    ]);
    assert_eq!(
        checkpoint
            .weight("query_tokens", &[1])
            .unwrap()
            .to_f32()
            .unwrap(),
        [2.0]
    );
}

#[test]
fn fused_qkv_bias_comes_whole_or_from_q_and_v() {
    let name = "vision_model.encoder.layers.7.self_attn.qkv.bias";
    let (_folder, checkpoint) = open(&[ramp(name, &[6], 1.0)]);
    assert_eq!(
        checkpoint.weight(name, &[6]).unwrap().to_f32().unwrap(),
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    );

    let q = ramp("vision_model.encoder.layers.7.self_attn.q_bias", &[2], 1.0);
    let v = ramp("vision_model.encoder.layers.7.self_attn.v_bias", &[2], 5.0);
    let (_folder, checkpoint) = open(&[q.clone(), v]);
    let weight = checkpoint.weight(name, &[6]).unwrap();
    assert_eq!(weight.to_f32().unwrap(), [1.0, 2.0, 0.0, 0.0, 5.0, 6.0]);
    assert_eq!(
        (
            weight.matrix(),
            weight.stored_bytes(),
            weight.views().count()
        ),
        ([1, 6], 16, 2)
    );
    let mut target = [0xff; 16];
    weight
        .write_rows(0..1, Format::F16, &mut target, 8)
        .unwrap();
    assert_eq!(halves(&target), [1.0, 2.0, 0.0, 0.0, 5.0, 6.0, 0.0, 0.0]);
    assert!(checkpoint.unused([name]).is_empty());

    let text = checkpoint.weight(name, &[12]).unwrap_err().to_string();
    assert!(
        text.contains("q_bias") && text.contains("[2]") && text.contains("[4]"),
        "{text}"
    );
    let (_folder, checkpoint) = open(&[q]);
    let text = checkpoint.weight(name, &[6]).unwrap_err().to_string();
    assert!(
        text.contains("missing") && text.contains("v_bias") && text.contains("model."),
        "{text}"
    );
}

#[test]
fn missing_misshapen_and_mistyped_tensors_are_named() {
    let integers = ("itm_head.weight".into(), Dtype::I64, vec![1], vec![0; 8]);
    let (folder, checkpoint) = open(&[ramp("query_tokens", &[1, 4, 8], 0.0), integers]);
    let text = checkpoint
        .weight("query_tokens", &[1, 32, 8])
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("\"query_tokens\"")
            && text.contains("[1, 4, 8]")
            && text.contains("[1, 32, 8]"),
        "{text}"
    );
    assert!(text.contains(&*folder.path().to_string_lossy()), "{text}");
    let text = checkpoint
        .weight("itm_head.weight", &[1])
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("\"itm_head.weight\"") && text.contains("I64") && text.contains("F16"),
        "{text}"
    );
    let text = checkpoint
        .weight("qformer.layernorm.bias", &[8])
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("missing") && text.contains("qformer.embeddings.layernorm.bias"),
        "{text}"
    );
    assert!(!text.contains('\n'));
}

#[test]
fn position_ids_of_old_revisions_are_neither_used_nor_unused() {
    let ids = (
        "embeddings.position_ids".into(),
        Dtype::I64,
        vec![1, 2],
        vec![0; 16],
    );
    let (_folder, checkpoint) = open(&[ramp("query_tokens", &[1], 0.0), ids]);
    assert!(checkpoint.unused(["query_tokens"]).is_empty());
}

#[test]
fn lm_head_is_tied_when_absent_or_equal() {
    let names = [LM_HEAD, EMBED_TOKENS];
    let embedding = ramp(EMBED_TOKENS, &[3, 2], 0.0);
    let (_folder, checkpoint) = open(std::slice::from_ref(&embedding));
    let is_own = |tied| checkpoint.has_output_matrix(names, tied, &[3, 2]);
    assert!(!is_own(true).unwrap());
    assert!(matches!(is_own(false), Err(WeightsError::Missing { .. })));
    for head in [LM_HEAD, "lm_head.weight"] {
        let (_folder, checkpoint) = open(&[embedding.clone(), ramp(head, &[3, 2], 0.0)]);
        for tied in [true, false] {
            let is_own = checkpoint.has_output_matrix(names, tied, &[3, 2]);
            assert!(!is_own.unwrap());
        }
        assert!(checkpoint.unused([EMBED_TOKENS]).is_empty());
        let (_folder, checkpoint) = open(&[embedding.clone(), ramp(head, &[3, 2], 9.0)]);
        let is_own = |shape: &[usize]| checkpoint.has_output_matrix(names, true, shape);
        assert!(is_own(&[3, 2]).unwrap());
        assert!(matches!(is_own(&[4, 2]), Err(WeightsError::Shape { .. })));
        let weight = checkpoint.weight(LM_HEAD, &[3, 2]).unwrap();
        assert_eq!(weight.to_f32().unwrap()[0], 9.0);
    }
}

#[test]
fn rows_are_converted_with_padding() {
    let (_folder, checkpoint) = open(&[ramp("m", &[5, 3], 0.0)]);
    let weight = checkpoint.weight("m", &[5, 3]).unwrap();
    let mut target = vec![0xee; 2 * 4 * 2 + 2];
    weight
        .write_rows(2..4, Format::F16, &mut target, 4)
        .unwrap();
    assert_eq!(
        halves(&target[..16]),
        [6.0, 7.0, 8.0, 0.0, 9.0, 10.0, 11.0, 0.0]
    );
    assert_eq!(target[16..], [0xee; 2]);
    let mut target = vec![0; 2 * 3 * 4];
    weight
        .write_rows(3..5, Format::F32, &mut target, 3)
        .unwrap();
    let singles: Vec<f32> = target
        .chunks(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(singles, [9.0, 10.0, 11.0, 12.0, 13.0, 14.0]);
    for (rows, stride, bytes) in [
        (4..6, 3, 99),
        (0..1, 2, 99),
        (0..2, 3, 11),
        (0..1, usize::MAX, 99),
    ] {
        let result = weight.write_rows(rows, Format::F16, &mut vec![0; bytes], stride);
        assert!(matches!(result, Err(WeightsError::Usage { .. })));
    }
    let backwards = Range { start: 3, end: 2 };
    assert!(
        weight
            .write_rows(backwards, Format::F16, &mut [0; 99], 3)
            .is_err()
    );
}

#[test]
fn matrix_shapes() {
    let matrix = |shape: &[usize]| Weight::zeros("w", shape).matrix();
    assert_eq!(matrix(&[7]), [1, 7]);
    assert_eq!(matrix(&[5, 3]), [5, 3]);
    assert_eq!(matrix(&[1, 32, 768]), [32, 768]);
    assert_eq!(matrix(&[1408, 3, 14, 14]), [1408, 588]);
    assert_eq!(matrix(&[]), [1, 1]);
    assert_eq!(Weight::zeros("w", &[3]).to_f32().unwrap(), [0.0; 3]);
}

#[test]
fn weights_that_f16_cannot_hold_are_refused_by_name() {
    let mut tensor = ramp("language_projection.weight", &[4, 600], 0.0);
    tensor.3[4 * 1900..4 * 1901].copy_from_slice(&1e6f32.to_le_bytes());
    let (_folder, checkpoint) = open(&[tensor]);
    let weight = checkpoint
        .weight("language_projection.weight", &[4, 600])
        .unwrap();
    let mut target = vec![0; 4 * 600 * 4];
    weight
        .write_rows(0..3, Format::F16, &mut target, 600)
        .unwrap();
    for (rows, stride) in [(0..4, 600), (3..4, 604)] {
        let text = weight
            .write_rows(rows, Format::F16, &mut target, stride)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("\"language_projection.weight\"") && text.contains("1000000"),
            "{text}"
        );
        assert!(text.contains("element 1900"), "{text}");
    }
    weight
        .write_rows(0..4, Format::F32, &mut target, 600)
        .unwrap();
}

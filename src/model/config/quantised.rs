//! `quantization_config`: whose quantised weights these are.

use crate::gpu::{QUANT_BLOCK, WeightFormat};

use super::fields::{ConfigError, Section};

/// `quant_method` of the weights that this program quantises.
pub const QUANT_METHOD: &str = "blip2-wgpu";

/// What `quantization_config` says: nothing, or that `convert` quantised these weights.
pub(super) fn quantised(root: &Section) -> Result<Option<WeightFormat>, ConfigError> {
    const PREFIX: &str = "quantization_config.";
    let Some(section) = root.section("quantization_config", PREFIX)? else {
        return Ok(None);
    };
    let from_f16 = "use the f16 (or f32) checkpoint that it was made from, with `quant` q8 or q4";
    if section.text("quant_method")? != Some(QUANT_METHOD) {
        let problem = format!("another program's quantised weights are not read; {from_f16}");
        return Err(section.error("quant_method", problem));
    }
    let format = WeightFormat::ALL
        .into_iter()
        .filter(|format| format.is_quantised())
        .find(|format| section.get("bits") == Some(&format.bits().into()));
    if format.is_none() {
        return Err(section.error("bits", format!("8 and 4 are known; {from_f16}")));
    }
    if section.get("block") != Some(&QUANT_BLOCK.into()) {
        return Err(section.error("block", format!("{QUANT_BLOCK} is known; {from_f16}")));
    }
    Ok(format)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::gpu::WeightFormat;
    use crate::model::Blip2Config;

    fn read(quantization_config: &str) -> Result<Option<WeightFormat>, String> {
        let json =
            format!(r#"{{"model_type": "blip-2", "quantization_config": {quantization_config}}}"#);
        Blip2Config::from_json(json.as_bytes(), Path::new("config.json"))
            .map(|config| config.quantised)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn our_own_quantised_weights_are_known() {
        assert_eq!(read("null"), Ok(None));
        for (bits, format) in [(8, WeightFormat::Q8), (4, WeightFormat::Q4)] {
            let section =
                format!(r#"{{"quant_method": "blip2-wgpu", "bits": {bits}, "block": 32}}"#);
            assert_eq!(read(&section), Ok(Some(format)));
        }
    }

    #[test]
    fn others_are_named_with_the_remedy() {
        for (section, named) in [
            (
                r#"{"quant_method": "bitsandbytes", "load_in_8bit": true}"#,
                "\"bitsandbytes\"",
            ),
            (r#"{"quant_method": "gptq", "bits": 4}"#, "\"gptq\""),
            (r#"{"load_in_4bit": true}"#, "absent"),
            (
                r#"{"quant_method": "blip2-wgpu", "bits": 3, "block": 32}"#,
                "bits is 3",
            ),
            (
                r#"{"quant_method": "blip2-wgpu", "bits": 4, "block": 64}"#,
                "block is 64",
            ),
            ("7", "quantization_config is 7"),
        ] {
            let error = read(section).expect_err(section);
            assert!(error.contains(named), "{error}");
            assert!(error.contains("quantization_config"), "{error}");
        }
        assert!(
            read(r#"{"quant_method": "awq"}"#).is_err_and(|error| error.contains("`quant` q8"))
        );
    }
}

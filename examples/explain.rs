//! Where a model looks while it captions, as a JSON object an image:
//! `cargo run --release --example explain -- MODEL IMAGE…` (MODEL may be demo)

use std::sync::Arc;

use blip2_wgpu::task::{Ask, WrittenText};
use blip2_wgpu::{Blip2, CaptionOptions, Error, OpenOptions, image};

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args_os().skip(1);
    let model = arguments.next().ok_or(Error::NoModel)?;
    pollster::block_on(async {
        let mut model = match model.to_str() {
            #[cfg(feature = "demo-model")]
            Some("demo") => Blip2::demo(OpenOptions::default()).await?,
            _ => Blip2::open(model, OpenOptions::default()).await?,
        };
        let options = CaptionOptions::default();
        let prompt = model.prompt_tokens(&Ask::Caption(Arc::new(options.clone())))?;
        for path in arguments {
            let picture = image::decode_file(path.as_ref(), image::DecodePolicy::hf())?;
            let pictures = std::slice::from_ref(&picture);
            let caption = model.caption(pictures, &options).await?.remove(0);
            let text = WrittenText {
                prompt: &prompt,
                generated: &caption.tokens,
            };
            let explanation = model.explain(&picture, &[text]).await?;
            let words: Vec<_> = explanation.texts[0]
                .iter()
                .map(|word| serde_json::json!({"text": word.text, "patches": word.patches}))
                .collect();
            let line = serde_json::json!({
                "image": path.display().to_string(),
                "pred_caption": caption.text,
                "grid": explanation.grid,
                "words": words,
            });
            println!("{line}");
        }
        Ok(())
    })
}

//! Captions images with the library: `cargo run --release --example caption -- MODEL IMAGE…`

use blip2_wgpu::{Blip2, CaptionOptions, Error, OpenOptions, image};

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args_os().skip(1);
    let model = arguments.next().ok_or(Error::NoModel)?;
    pollster::block_on(async {
        let mut model = Blip2::open(model, OpenOptions::default()).await?;
        for path in arguments {
            let picture = image::decode_file(path.as_ref(), image::DecodePolicy::hf())?;
            let captions = model
                .caption(&[picture], &CaptionOptions::default())
                .await?;
            println!("{}: {}", path.display(), captions[0].text);
        }
        Ok(())
    })
}

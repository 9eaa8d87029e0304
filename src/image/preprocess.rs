//! A checkpoint's image preprocessing, as its `preprocessor_config.json` describes it.

use std::path::Path;

use serde_json::{Map, Value};

use crate::files::bounded;
use crate::files::text;

use super::{ImageError, MAX_PIXELS, Rgb8Image, groups, resize_bicubic};

/// OpenAI CLIP's mean and standard deviation of RGB in 0..1, which every BLIP-2 checkpoint uses.
pub(crate) const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
pub(crate) const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];
/// Pillow's number for bicubic.
const BICUBIC: u64 = 3;
/// Pillow's filters, by their numbers.
const FILTERS: [&str; 6] = [
    "nearest", "lanczos", "bilinear", "bicubic", "box", "hamming",
];
/// The largest side asked for that is still taken for an image size, in pixels.
const MAX_SIDE: u32 = 16384;

/// Turns 8-bit RGB into what the vision transformer reads: resized, scaled and normalised.
///
/// Equal to transformers' `BlipImageProcessor` on Pillow (its `backend="pil"`), whose arithmetic it
/// repeats: `f32(f64(x) · rescale_factor)`, then `(x − mean) / std` in f32.
#[derive(Clone, Debug)]
pub struct Preprocessor {
    target: Target,
    /// The value of each possible sample: `[channel][sample]`. 8-bit pixels leave only 768 results.
    values: Box<[[f32; 256]; 3]>,
}

/// The size an image is brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// `do_resize` is false.
    AsIs,
    /// Exactly this size, whatever the aspect ratio.
    Exact { height: u32, width: u32 },
    /// The shorter side gets this length; the aspect ratio is kept.
    ShortestEdge(u32),
}

impl Preprocessor {
    /// BLIP-2's preprocessing for images of `size` × `size` pixels.
    ///
    /// # Errors
    /// [`ImageError::BadSize`] when `size` is 0 or beyond 16384.
    pub fn blip2(size: u32) -> Result<Self, ImageError> {
        let target = square(size)?;
        let values = values(Some(1.0 / 255.0), Some((CLIP_MEAN, CLIP_STD)));
        Ok(Self { target, values })
    }

    /// Reads a checkpoint folder's configuration as transformers does: the `image_processor` part of
    /// `processor_config.json` if there is one, else `preprocessor_config.json`. Without either file,
    /// and where `size` is not given, images become `default_size` × `default_size`.
    ///
    /// # Errors
    /// A file that cannot be read or is not JSON; a field whose value cannot be honoured.
    pub fn from_files(folder: &Path, default_size: u32) -> Result<Self, ImageError> {
        let nested = Config::read(&folder.join("processor_config.json"))?;
        if let Some(config) = nested.and_then(|config| config.part("image_processor")) {
            return config.preprocessor(default_size);
        }
        match Config::read(&folder.join("preprocessor_config.json"))? {
            Some(config) => config.preprocessor(default_size),
            None => Self::blip2(default_size),
        }
    }

    /// The preprocessing of a `preprocessor_config.json`'s text; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`Preprocessor::from_files`].
    pub fn from_json(text: &[u8], name: &str, default_size: u32) -> Result<Self, ImageError> {
        Config::parse(text, name.to_owned())?.preprocessor(default_size)
    }

    /// The same with images of `size` × `size` pixels.
    ///
    /// # Errors
    /// [`ImageError::BadSize`] when `size` is 0 or beyond 16384.
    pub fn with_size(self, size: u32) -> Result<Self, ImageError> {
        Ok(Self {
            target: square(size)?,
            ..self
        })
    }

    /// `(height, width)` of the result for an image of `height` × `width` pixels.
    pub fn output_size(&self, height: u32, width: u32) -> (u32, u32) {
        match self.target {
            Target::AsIs => (height, width),
            Target::Exact { height, width } => (height, width),
            Target::ShortestEdge(edge) => {
                let (short, long) = (height.min(width), height.max(width));
                // Truncated like Python's int(edge * long / short), a division in f64.
                let longer = (u64::from(edge) * u64::from(long)) as f64 / f64::from(short);
                let longer = longer as u32;
                if width <= height {
                    (longer, edge)
                } else {
                    (edge, longer)
                }
            }
        }
    }

    /// Resizes and normalises: `[3, height, width]`, with the sides that
    /// [`output_size`](Self::output_size) tells.
    ///
    /// # Errors
    /// [`ImageError::BadSize`] when keeping the aspect ratio would make an absurdly long image.
    pub fn apply(&self, image: &Rgb8Image) -> Result<Vec<f32>, ImageError> {
        let (height, width) = self.output_size(image.height(), image.width());
        if u64::from(height) * u64::from(width) > MAX_PIXELS {
            let size = height.max(width);
            return Err(ImageError::BadSize { size });
        }
        let resized = resize_bicubic(image, width, height);
        let pixels = groups::<_, 3>(resized.data());
        let mut tensor = Vec::with_capacity(resized.data().len());
        for (channel, values) in self.values.iter().enumerate() {
            tensor.extend(
                pixels
                    .iter()
                    .map(|pixel| values[usize::from(pixel[channel])]),
            );
        }
        Ok(tensor)
    }
}

fn square(size: u32) -> Result<Target, ImageError> {
    if !(1..=MAX_SIDE).contains(&size) {
        return Err(ImageError::BadSize { size });
    }
    Ok(Target::Exact {
        height: size,
        width: size,
    })
}

/// What each sample becomes; see [`Preprocessor`] for the formula.
fn values(rescale: Option<f64>, normalise: Option<([f64; 3], [f64; 3])>) -> Box<[[f32; 256]; 3]> {
    let mut table = Box::new([[0.0; 256]; 3]);
    for (channel, values) in table.iter_mut().enumerate() {
        for (sample, value) in values.iter_mut().enumerate() {
            *value = match rescale {
                Some(factor) => (sample as f64 * factor) as f32,
                None => sample as f32,
            };
            if let Some((mean, std)) = normalise {
                *value = (*value - mean[channel] as f32) / std[channel] as f32;
            }
        }
    }
    table
}

/// The most that is read of a configuration: 1 MiB, where a thousand bytes are usual.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A JSON object and the file it stands in.
struct Config {
    file: String,
    fields: Map<String, Value>,
}

impl Config {
    /// `None` when there is no such file.
    fn read(path: &Path) -> Result<Option<Self>, ImageError> {
        let file = path.display().to_string();
        let text = match bounded::read(path, MAX_CONFIG_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ImageError::Read { name: file, source }),
        };
        Self::parse(&text, file).map(Some)
    }

    fn parse(bytes: &[u8], file: String) -> Result<Self, ImageError> {
        match text::json(bytes) {
            Ok(fields) => Ok(Self { file, fields }),
            Err(source) => Err(ImageError::ConfigJson { file, source }),
        }
    }

    /// The object under `key`.
    fn part(mut self, key: &str) -> Option<Self> {
        match self.fields.remove(key)? {
            Value::Object(fields) => Some(Self { fields, ..self }),
            _ => None,
        }
    }

    fn preprocessor(&self, default_size: u32) -> Result<Preprocessor, ImageError> {
        for step in ["do_center_crop", "do_pad"] {
            if self.flag(step, false)? {
                return Err(self.wrong(step, "this step is not supported", "set it to false"));
            }
        }
        let target = if self.flag("do_resize", true)? {
            self.check_resample()?;
            self.target(default_size)?
        } else {
            Target::AsIs
        };
        let rescale = match self.flag("do_rescale", true)? {
            true => Some(self.rescale_factor()?),
            false => None,
        };
        let normalise = match self.flag("do_normalize", true)? {
            true => {
                let mean = self.triple("image_mean", CLIP_MEAN)?;
                let std = self.triple("image_std", CLIP_STD)?;
                if std.contains(&0.0) {
                    return Err(self.wrong("image_std", "a divisor of 0", "give numbers above 0"));
                }
                Some((mean, std))
            }
            false => None,
        };
        // `do_convert_rgb` has nothing to decide: images reach this point as RGB.
        Ok(Preprocessor {
            target,
            values: values(rescale, normalise),
        })
    }

    /// The value of a field; `null` counts as absent, as in transformers.
    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn wrong(
        &self,
        field: &'static str,
        problem: impl Into<String>,
        remedy: &'static str,
    ) -> ImageError {
        ImageError::ConfigField {
            file: self.file.clone(),
            field,
            problem: problem.into(),
            remedy,
        }
    }

    fn flag(&self, field: &'static str, default: bool) -> Result<bool, ImageError> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(
                field,
                format!("{other} is not a flag"),
                "write true or false",
            )),
        }
    }

    fn check_resample(&self) -> Result<(), ImageError> {
        match self.get("resample") {
            None => Ok(()),
            Some(value) if value.as_u64() == Some(BICUBIC) => Ok(()),
            Some(other) => Err(self.wrong(
                "resample",
                match other
                    .as_u64()
                    .and_then(|number| FILTERS.get(usize::try_from(number).ok()?))
                {
                    Some(name) => format!("{other} ({name}) is not supported"),
                    None => format!("{other} is not a filter's number"),
                },
                "only 3 (bicubic) is supported, which every BLIP-2 checkpoint uses",
            )),
        }
    }

    fn rescale_factor(&self) -> Result<f64, ImageError> {
        match self.get("rescale_factor") {
            None => Ok(1.0 / 255.0),
            Some(value) => value.as_f64().ok_or_else(|| {
                self.wrong(
                    "rescale_factor",
                    format!("{value} is not a number"),
                    "write 1/255 as a decimal",
                )
            }),
        }
    }

    /// Three numbers, or one for all channels.
    fn triple(&self, field: &'static str, default: [f64; 3]) -> Result<[f64; 3], ImageError> {
        let Some(value) = self.get(field) else {
            return Ok(default);
        };
        if let Some(number) = value.as_f64() {
            return Ok([number; 3]);
        }
        let numbers: Option<Vec<f64>> = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers
            .and_then(|numbers| numbers.try_into().ok())
            .ok_or_else(|| {
                let problem = format!("{value} is not a list of three numbers");
                self.wrong(
                    field,
                    problem,
                    "give one number each for red, green and blue",
                )
            })
    }

    fn target(&self, default_size: u32) -> Result<Target, ImageError> {
        let Some(size) = self.get("size") else {
            return square(default_size);
        };
        let edge = |value: Option<&Value>| {
            value?
                .as_u64()
                .and_then(|edge| u32::try_from(edge).ok())
                .filter(|edge| (1..=MAX_SIDE).contains(edge))
        };
        let keys = size
            .as_object()
            .map(|size| size.keys().map(String::as_str).collect::<Vec<_>>());
        let target = match keys.as_deref() {
            None => match (edge(Some(size)), self.flag("default_to_square", true)?) {
                (Some(edge), false) => Some(Target::ShortestEdge(edge)),
                (edge, _) => edge.map(|edge| Target::Exact {
                    height: edge,
                    width: edge,
                }),
            },
            Some(["shortest_edge"]) => edge(size.get("shortest_edge")).map(Target::ShortestEdge),
            Some(["height", "width"] | ["width", "height"]) => edge(size.get("height"))
                .zip(edge(size.get("width")))
                .map(|(height, width)| Target::Exact { height, width }),
            Some(_) => None,
        };
        target.ok_or_else(|| {
            let remedy = r#"write {"height": 224, "width": 224}, {"shortest_edge": 224} or 224, with the model's own size"#;
            self.wrong("size", format!("{size} is not a usable size"), remedy)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn read(text: &str) -> Result<Preprocessor, ImageError> {
        Preprocessor::from_files(folder(&[("preprocessor_config.json", text)]).path(), 224)
    }

    fn grey(width: u32, height: u32, sample: u8) -> Rgb8Image {
        let data = vec![sample; (width * height * 3) as usize];
        Rgb8Image::new(width, height, data).unwrap()
    }

    #[test]
    fn sizes() {
        let size = |text: &str| read(text).map(|preprocessor| preprocessor.output_size(480, 640));
        assert_eq!(size("{}").unwrap(), (224, 224));
        assert_eq!(
            size(r#"{"size": {"height": 364, "width": 300}}"#).unwrap(),
            (364, 300)
        );
        assert_eq!(size(r#"{"size": 392}"#).unwrap(), (392, 392));
        assert_eq!(
            size(r#"{"size": {"shortest_edge": 100}}"#).unwrap(),
            (100, 133)
        );
        assert_eq!(
            size(r#"{"size": 100, "default_to_square": false}"#).unwrap(),
            (100, 133)
        );
        assert_eq!(
            size(r#"{"do_resize": false, "resample": 9}"#).unwrap(),
            (480, 640)
        );
        let resized = read(r#"{"size": 392}"#).unwrap().with_size(56).unwrap();
        assert_eq!(resized.output_size(480, 640), (56, 56));
        let portrait = read(r#"{"size": {"shortest_edge": 100}}"#).unwrap();
        assert_eq!(portrait.output_size(640, 480), (133, 100));
    }

    #[test]
    fn values_follow_the_flags() {
        let image = grey(2, 2, 128);
        let first = |text: &str| read(text).unwrap().apply(&image).unwrap()[0];
        let plain = r#"{"do_rescale": false, "do_normalize": false}"#;
        assert_eq!(first(plain), 128.0);
        assert_eq!(first(r#"{"do_normalize": false}"#), 128.0 / 255.0);
        assert_eq!(
            first(r#"{"rescale_factor": 0.5, "do_normalize": false}"#),
            64.0
        );
        assert_eq!(
            first(r#"{"do_rescale": false, "image_mean": 28, "image_std": [4, 2, 1]}"#),
            25.0
        );
        let clip = first("{}");
        assert!((clip - (128.0 / 255.0 - 0.481_454_66) / 0.268_629_54).abs() < 1e-6);
    }

    #[test]
    fn channels_come_one_after_the_other() {
        let image = Rgb8Image::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let plain = r#"{"do_resize": false, "do_rescale": false, "do_normalize": false}"#;
        let tensor = read(plain).unwrap().apply(&image).unwrap();
        assert_eq!(tensor, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    #[test]
    fn which_file_counts() {
        let size = |files: &[(&str, &str)]| {
            let preprocessor = Preprocessor::from_files(folder(files).path(), 10).unwrap();
            preprocessor.output_size(1, 1).0
        };
        let legacy = ("preprocessor_config.json", r#"{"size": 20}"#);
        let nested = (
            "processor_config.json",
            r#"{"image_processor": {"size": 30}}"#,
        );
        let tokens_only = ("processor_config.json", r#"{"num_query_tokens": 32}"#);
        assert_eq!(size(&[]), 10);
        assert_eq!(size(&[legacy]), 20);
        assert_eq!(size(&[legacy, nested]), 30);
        assert_eq!(size(&[legacy, tokens_only]), 20);
        assert_eq!(size(&[tokens_only]), 10);
    }

    #[test]
    fn wrong_values_name_file_and_field() {
        for (field, text) in [
            ("resample", r#"{"resample": 1}"#),
            ("resample", r#"{"resample": "bicubic"}"#),
            ("size", r#"{"size": {"longest_edge": 5}}"#),
            ("size", r#"{"size": 0}"#),
            ("size", r#"{"size": {"height": 224, "width": -1}}"#),
            ("image_mean", r#"{"image_mean": [1, 2]}"#),
            ("image_std", r#"{"image_std": [1, 0, 1]}"#),
            ("rescale_factor", r#"{"rescale_factor": "1/255"}"#),
            ("do_rescale", r#"{"do_rescale": 1}"#),
            ("do_center_crop", r#"{"do_center_crop": true}"#),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("preprocessor_config.json"), "{error}");
            assert!(error.contains(&format!("`{field}`")), "{error}");
        }
        assert!(matches!(read("{"), Err(ImageError::ConfigJson { .. })));
        assert!(matches!(read("[]"), Err(ImageError::ConfigJson { .. })));
        assert!(matches!(
            Preprocessor::blip2(0),
            Err(ImageError::BadSize { size: 0 })
        ));
    }

    #[test]
    fn a_long_strip_is_not_blown_up() {
        let preprocessor = read(r#"{"size": {"shortest_edge": 224}}"#).unwrap();
        assert!(preprocessor.apply(&grey(20000, 1, 0)).is_err());
    }

    #[test]
    fn usable_from_several_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Preprocessor>();
    }
}

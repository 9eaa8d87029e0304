//! Tokenisers. STUB
use std::path::Path;
/// E
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// x
    #[error("{0}")]
    Any(String),
}
/// T
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
}
impl Tokenizer {
    /// o
    pub fn open(folder: &Path, bos: u32) -> Result<Self, TextError> {
        Ok(Self {
            inner: tokenizers::Tokenizer::from_file(folder.join("tokenizer.json"))
                .map_err(|e| TextError::Any(e.to_string()))?,
            bos,
        })
    }
    /// e
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = vec![self.bos];
        ids.extend(
            self.inner
                .encode(text, false)
                .map_err(|e| TextError::Any(e.to_string()))?
                .get_ids(),
        );
        Ok(ids)
    }
    /// d
    pub fn decode(&self, ids: &[u32], skip: bool) -> Result<String, TextError> {
        self.inner
            .decode(ids, skip)
            .map_err(|e| TextError::Any(e.to_string()))
    }
    /// n
    pub fn newline(&self) -> Option<u32> {
        self.encode("\n").ok()?.get(1).copied()
    }
}
/// S
pub struct TextStream<'a> {
    t: &'a Tokenizer,
    ids: Vec<u32>,
    said: usize,
}
impl<'a> TextStream<'a> {
    /// n
    pub fn new(t: &'a Tokenizer) -> Self {
        Self {
            t,
            ids: vec![],
            said: 0,
        }
    }
    /// p
    pub fn push(&mut self, token: u32) -> Option<String> {
        self.ids.push(token);
        let s = self.t.decode(&self.ids, true).ok()?;
        if s.ends_with('\u{fffd}') {
            return None;
        }
        let out = s[self.said..].to_string();
        self.said = s.len();
        Some(out)
    }
}

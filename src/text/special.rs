//! Added and special tokens from the files beside a vocabulary: `tokenizer_config.json`,
//! `special_tokens_map.json`, `added_tokens.json`.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::{TextError, files};

/// The fields that name special tokens.
const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// What the files beside a vocabulary say.
pub(super) struct SpecialFiles {
    config: Map<String, Value>,
    map: Map<String, Value>,
    /// Added tokens that have an id.
    added: BTreeMap<u32, AddedToken>,
}

impl SpecialFiles {
    /// Reads those of the three files that are in `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, TextError> {
        let config = files::object(folder, "tokenizer_config.json")?.unwrap_or_default();
        let map = files::object(folder, "special_tokens_map.json")?.unwrap_or_default();
        let mut added = BTreeMap::new();
        if let Some(object) = files::object(folder, "added_tokens.json")? {
            for (token, id) in files::ids(&folder.join("added_tokens.json"), object)? {
                added.insert(id, AddedToken::from(token, false));
            }
        }
        let decoder = config
            .get("added_tokens_decoder")
            .and_then(Value::as_object);
        for (id, description) in decoder.into_iter().flatten() {
            let id = id.parse().ok();
            let token = added_token(description, true);
            let (Some(id), Some(token)) = (id, token) else {
                let file = folder.join("tokenizer_config.json");
                return Err(files::broken(
                    &file,
                    "`added_tokens_decoder` has a token without id or content",
                ));
            };
            added.insert(id, token);
        }
        Ok(Self { config, map, added })
    }

    /// The token that plays `role` (say `bos_token`).
    pub(super) fn role(&self, role: &str) -> Option<&str> {
        let value = self.map.get(role).or_else(|| self.config.get(role))?;
        content(value)
    }

    /// A yes-or-no field of `tokenizer_config.json`.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.config.get(name)?.as_bool()
    }

    /// Makes `tokenizer` know all these tokens: those with an id get that id, the special ones become
    /// special where they are not yet.
    pub(super) fn add_to(&self, tokenizer: &mut Tokenizer, folder: &Path) -> Result<(), TextError> {
        for (&id, token) in &self.added {
            let known = tokenizer.get_added_tokens_decoder().get(&id).cloned();
            if known.is_some_and(|known| known.content == token.content) {
                continue;
            }
            add(tokenizer, token.clone(), folder)?;
            let got = tokenizer.token_to_id(&token.content);
            if got != Some(id) {
                let problem = format!(
                    "added token {:?} has id {id}, where the vocabulary puts {got:?}",
                    token.content
                );
                return Err(files::broken(
                    &folder.join("tokenizer_config.json"),
                    problem,
                ));
            }
        }
        for token in self.special_tokens() {
            let known = tokenizer.get_added_tokens_decoder();
            if !known
                .values()
                .any(|t| t.special && t.content == token.content)
            {
                add(tokenizer, token, folder)?;
            }
        }
        Ok(())
    }

    /// The tokens named by a role or as additional special tokens, in the order of their files' fields.
    fn special_tokens(&self) -> Vec<AddedToken> {
        let mut tokens = Vec::new();
        for source in [&self.map, &self.config] {
            let roles = ROLES.iter().filter_map(|role| source.get(*role));
            tokens.extend(roles.filter_map(|value| added_token(value, true)));
            let additional = ["additional_special_tokens", "extra_special_tokens"]
                .iter()
                .filter_map(|name| source.get(*name)?.as_array())
                .flatten();
            tokens.extend(additional.filter_map(|value| added_token(value, true)));
        }
        tokens
    }
}

fn add(tokenizer: &mut Tokenizer, token: AddedToken, folder: &Path) -> Result<(), TextError> {
    files::guarded(|| tokenizer.add_tokens([token]))
        .map(|_| ())
        .map_err(|problem| TextError::Failed {
            folder: folder.to_owned(),
            problem,
        })
}

/// The text of a token written as a string or as an object with `content`.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn added_token(value: &Value, special_by_default: bool) -> Option<AddedToken> {
    let flag = |name, default| value.get(name).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", special_by_default);
    let token = AddedToken::from(content(value)?, special)
        .single_word(flag("single_word", false))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false))
        // transformers never normalises special tokens, whatever old files say.
        .normalized(!special && flag("normalized", true));
    Some(token)
}

/// Ids of a tokenizer's special tokens, rising.
pub(super) fn special_ids(tokenizer: &Tokenizer) -> Vec<u32> {
    let added = tokenizer.get_added_tokens_decoder();
    let mut ids: Vec<u32> = added
        .into_iter()
        .filter_map(|(id, token)| token.special.then_some(id))
        .collect();
    ids.sort_unstable();
    ids
}

/// Errs where the tokenizer has an id that an embedding of `rows` rows lacks, other than `placeholder`, which is never
/// embedded.
pub(super) fn check_embedding_rows(
    tokenizer: &Tokenizer,
    folder: &Path,
    rows: usize,
    placeholder: Option<u32>,
) -> Result<(), TextError> {
    let ids = tokenizer.get_vocab(true).into_values();
    match ids.filter(|&id| Some(id) != placeholder).max() {
        Some(largest) if largest as usize >= rows => Err(TextError::VocabularyTooLarge {
            folder: folder.to_owned(),
            largest,
            rows,
        }),
        _ => Ok(()),
    }
}

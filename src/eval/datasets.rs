//! Datasets of captioned images: COCO's and Karpathy's layouts, for captions and for retrieval.
//!
//! Layouts are told apart by what is in the file: `{"images", "annotations"}` (COCO), a list of
//! `{"image", "caption"}` (LAVIS's Karpathy splits) or such objects a line, `{"images": [{"sentences"}]}`
//! (Karpathy's own, for Flickr30k), and tables. COCO's test files have images alone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use serde_json::value::RawValue;

use super::json::{Item, JsonFile, Object, Top};
use super::tables::{self, CAPTION_FIELDS, IMAGE_FIELDS, Row};
use super::{EvalError, Id};

const LAYOUTS: &str = "COCO captions ({\"images\": […], \"annotations\": […]}), a Karpathy split ([{\"image\", \"caption\"}, …], \
     or such objects a line), Karpathy's dataset file ({\"images\": [{\"sentences\"}, …]}), a CSV table with the columns image \
     and caption, or Flickr's .token file";

/// An image of a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedImage {
    /// Its id: the file's own, else the number in its name, else the name.
    pub id: Id,
    /// Where it may lie below the image folder, the likeliest first; empty where only the id is
    /// known.
    pub paths: Vec<String>,
}

/// A text of a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedText {
    /// The index of its image.
    pub image: usize,
    /// The text.
    pub text: String,
}

/// Images with the captions that people gave them.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionData {
    /// Where this was read.
    pub file: PathBuf,
    /// The images, in the file's order: row i of a score matrix.
    pub images: Vec<ListedImage>,
    /// The texts, in the file's order: column t of a score matrix.
    pub texts: Vec<ListedText>,
}

impl CaptionData {
    /// Reads any of the layouts; of Karpathy's dataset files, which hold all splits, the images of
    /// `split`.
    ///
    /// # Errors
    /// A file that is none of them; a missing or wrong field or an id given twice, named with its
    /// item.
    pub fn read(file: &Path, split: &str) -> Result<Self, EvalError> {
        let json = JsonFile::read(file)?;
        let mut data = Self {
            file: file.into(),
            images: Vec::new(),
            texts: Vec::new(),
        };
        if let Some(rows) = tables::read(json.text(), file, &ID_FIELDS) {
            data.read_table(rows?, split)?;
            return data.not_empty(split);
        }
        if let Some(items) = items_a_line(&json) {
            data.read_karpathy_list(&json, &items)?;
            return data.not_empty(split);
        }
        match json.top(LAYOUTS)? {
            Top::List(items) => data.read_karpathy_list(&json, &items)?,
            Top::Object(top) if top.has("annotations") || is_coco(&json, &top)? => {
                data.read_coco(&json, &top)?
            }
            Top::Object(top) => data.read_karpathy_dataset(&json, &top, split)?,
        }
        data.not_empty(split)
    }

    fn not_empty(self, split: &str) -> Result<Self, EvalError> {
        if self.images.is_empty() {
            return Err(EvalError::Empty {
                file: self.file,
                problem: format!("no image in it (split {split}); check that it is the right file"),
            });
        }
        Ok(self)
    }

    /// Each image's captions.
    #[must_use]
    pub fn captions(&self) -> Vec<Vec<&str>> {
        let mut captions = vec![Vec::new(); self.images.len()];
        for text in &self.texts {
            captions[text.image].push(text.text.as_str());
        }
        captions
    }

    /// The image of each text.
    #[must_use]
    pub fn image_of_text(&self) -> Vec<usize> {
        self.texts.iter().map(|text| text.image).collect()
    }

    fn read_coco(&mut self, json: &JsonFile, top: &Object<'_>) -> Result<(), EvalError> {
        let mut by_id = HashMap::new();
        for item in json.items(top, "images", LAYOUTS, "id")? {
            let item = item?;
            let image = ListedImage {
                id: item.id("id")?,
                paths: coco_paths(&item)?,
            };
            if by_id.insert(image.id.clone(), self.images.len()).is_some() {
                return Err(item.error(
                    "has the id of another image; each may be there once, so take one out",
                ));
            }
            self.images.push(image);
        }
        let mut seen = HashSet::new();
        if !top.has("annotations") {
            return Ok(());
        }
        for item in json.items(top, "annotations", LAYOUTS, "id")? {
            let item = item?;
            if !seen.insert(item.id("id")?) {
                return Err(item.error(
                    "has the id of another annotation; each may be there once, so take one out",
                ));
            }
            let image = item.id("image_id")?;
            let Some(&image) = by_id.get(&image) else {
                return Err(item.wrong(
                    "image_id",
                    format!("is {image}, which \"images\" does not have"),
                ));
            };
            self.texts.push(ListedText {
                image,
                text: item.string("caption")?.to_owned(),
            });
        }
        Ok(())
    }

    fn read_karpathy_list(
        &mut self,
        json: &JsonFile,
        items: &[&RawValue],
    ) -> Result<(), EvalError> {
        let mut list = ImageList::default();
        for (index, raw) in items.iter().enumerate() {
            let item = json.item(raw, "", index, "image")?;
            let of = |fields: &[&'static str]| {
                let mut fields = fields.iter().filter(|field| item.get(field).is_some());
                fields.next().copied()
            };
            let path = item.path(of(&IMAGE_FIELDS).unwrap_or("image"))?;
            let field = of(&CAPTION_FIELDS).unwrap_or("caption");
            let one = item.get(field).is_some_and(Value::is_string);
            let captions = if one {
                vec![item.string(field)?.to_owned()]
            } else {
                item.strings(field, None)?
            };
            // The training split has an item a caption, the others an item an image.
            if !one && list.has(path) {
                return Err(item.error(
                    "is an image that was there before; each may be there once, so take one out",
                ));
            }
            if list.paths.is_empty() {
                list.id_field = of(&ID_FIELDS);
            } else if let (None, Some(field)) = (list.id_field, of(&ID_FIELDS)) {
                return Err(item.wrong(
                    field,
                    "is there, but the items before have none; give all of them one, or none",
                ));
            }
            let id = list.id_field.map(|field| item.id(field)).transpose()?;
            let field = list.id_field.unwrap_or_default();
            let image = list.add(path, id, |problem| item.wrong(field, problem))?;
            self.texts
                .extend(captions.into_iter().map(|text| ListedText { image, text }));
        }
        self.images = list.into_images(&self.file)?;
        Ok(())
    }

    /// A table has a row a caption.
    fn read_table(&mut self, rows: Vec<Row>, split: &str) -> Result<(), EvalError> {
        let mut list = ImageList::default();
        let of_split = |row: &Row| row.split.as_ref().is_none_or(|it| it == split);
        for row in rows.into_iter().filter(of_split) {
            list.id_field = row.id.as_ref().map(|(field, _)| *field);
            let id = row.id.map(|(_, id)| Id::new(&id));
            let (file, field) = (&self.file, list.id_field.unwrap_or_default());
            let image = list.add(&row.image, id, |problem| {
                EvalError::item(
                    file,
                    format!("line {}", row.line),
                    format!("{field} {problem}"),
                )
            })?;
            let captions = row.captions.into_iter();
            self.texts
                .extend(captions.map(|text| ListedText { image, text }));
        }
        self.images = list.into_images(&self.file)?;
        Ok(())
    }

    fn read_karpathy_dataset(
        &mut self,
        json: &JsonFile,
        top: &Object<'_>,
        split: &str,
    ) -> Result<(), EvalError> {
        let mut ids = HashSet::new();
        let mut id_field = None;
        let mut splits = BTreeSet::new();
        for item in json.items(top, "images", LAYOUTS, "filename")? {
            let item = item?;
            let own = item.string("split")?;
            if own != split {
                splits.insert(own.to_owned());
                continue;
            }
            let name = item.path("filename")?;
            let in_folder = item
                .optional_string("filepath")?
                .map(|folder| format!("{folder}/{name}"));
            // The first image says what the ids are called: numbers of two kinds would mix.
            let own_field = ["cocoid", "imgid"]
                .into_iter()
                .find(|field| item.get(field).is_some());
            let field = *id_field.get_or_insert(own_field.unwrap_or("imgid"));
            if field == "imgid" && own_field == Some("cocoid") {
                return Err(item.wrong(
                    "cocoid",
                    "is there, but the images before have none; give all of them one, or none",
                ));
            }
            let id = item.id(field)?;
            if !ids.insert(id.clone()) {
                return Err(item.error(format!(
                    "has the id {id} of another image; each may be there once, so take one out"
                )));
            }
            let image = self.images.len();
            self.images.push(ListedImage {
                id,
                paths: in_folder.into_iter().chain([name.to_owned()]).collect(),
            });
            let texts = item.strings("sentences", Some("raw"))?;
            self.texts
                .extend(texts.into_iter().map(|text| ListedText { image, text }));
        }
        if self.images.is_empty() && !splits.is_empty() {
            let splits = splits.into_iter().collect::<Vec<_>>().join(", ");
            return Err(EvalError::Empty {
                file: self.file.clone(),
                problem: format!("no image of split {split} in it; it has the splits {splits}"),
            });
        }
        Ok(())
    }
}

/// The items of a file that has one a line; `None` for any other. A file of one line is one where that is an
/// image with its captions.
fn items_a_line(json: &JsonFile) -> Option<Vec<&RawValue>> {
    let items = json.lines()?;
    let is_item = |raw: &RawValue| {
        let object = serde_json::from_str::<serde_json::Map<String, Value>>(raw.get());
        object.is_ok_and(|object| IMAGE_FIELDS.iter().any(|field| object.contains_key(*field)))
    };
    is_item(items.first()?).then_some(items)
}

/// Whether images are listed as COCO's test files have them: with ids, and neither in splits nor
/// with captions.
fn is_coco(json: &JsonFile, top: &Object<'_>) -> Result<bool, EvalError> {
    let images = json.section(top, "images", LAYOUTS)?;
    let Some(first) = images.first() else {
        return Ok(false);
    };
    let item = json.item(first, "images", 0, "id")?;
    let has = |field| item.get(field).is_some();
    Ok(has("id") && !has("split") && !has("sentences"))
}

/// Where COCO's image may lie: by its file name, and by the folder and name in its address, as
/// mmpretrain looks for it.
fn coco_paths(item: &Item<'_>) -> Result<Vec<String>, EvalError> {
    let name = item.optional_string("file_name")?.map(str::to_owned);
    let address = item.optional_string("coco_url")?.and_then(|url| {
        let mut parts = url.rsplit('/');
        let (name, folder) = (parts.next()?, parts.next()?);
        Some(format!("{folder}/{name}"))
    });
    Ok(name.into_iter().chain(address).collect())
}

/// Where the items of a list give an image's id, the surest first.
const ID_FIELDS: [&str; 3] = ["img_id", "image_id", "id"];

/// Images as the items of a list name them, each with its id.
#[derive(Default)]
struct ImageList {
    by_path: HashMap<String, usize>,
    paths: Vec<String>,
    /// Each image's id, where the items give one.
    ids: Vec<Id>,
    /// What the ids are called, if anything; all items must have it then.
    id_field: Option<&'static str>,
    /// Items about one image differ in their `id`, so that it is the caption's.
    ids_are_of_captions: bool,
}

impl ImageList {
    fn has(&self, path: &str) -> bool {
        self.by_path.contains_key(path)
    }

    /// The index of the image at `path`, which an item calls `id`; `wrong` makes an error about the item's id.
    fn add(
        &mut self,
        path: &str,
        id: Option<Id>,
        wrong: impl FnOnce(String) -> EvalError,
    ) -> Result<usize, EvalError> {
        if let Some(&image) = self.by_path.get(path) {
            return match id {
                Some(id) if id != self.ids[image] => match self.id_field {
                    Some("id") => {
                        self.ids_are_of_captions = true;
                        Ok(image)
                    }
                    _ => Err(wrong(format!(
                        "is {id}, but an item before calls the same image {}",
                        self.ids[image]
                    ))),
                },
                _ => Ok(image),
            };
        }
        self.ids.extend(id);
        self.by_path.insert(path.to_owned(), self.paths.len());
        self.paths.push(path.to_owned());
        Ok(self.paths.len() - 1)
    }

    /// The images, called as the items of `file` call them, else by their names.
    fn into_images(self, file: &Path) -> Result<Vec<ListedImage>, EvalError> {
        let field = self.id_field.filter(|_| !self.ids_are_of_captions);
        let ids = match field {
            Some(_) => self.ids,
            None => ids_in_names(&self.paths),
        };
        let mut seen = HashMap::new();
        for (id, path) in ids.iter().zip(&self.paths) {
            if let (Some(other), Some(field)) = (seen.insert(id, path), field) {
                let problem = format!(
                    "is an image with the {field} {id}, as {other} is; each may be there once, so correct one"
                );
                return Err(EvalError::item(file, path, problem));
            }
        }
        let images = ids.into_iter().zip(self.paths);
        let image = |(id, path)| ListedImage {
            id,
            paths: vec![path],
        };
        Ok(images.map(image).collect())
    }
}

/// Ids of images that have none but their paths: the numbers in the names; where two would have one
/// number, the names without their endings; where two would have one name, the paths.
#[must_use]
pub fn ids_in_names<P: AsRef<str>>(paths: &[P]) -> Vec<Id> {
    let different = |ids: &[Id]| ids.iter().collect::<HashSet<_>>().len() == ids.len();
    let call = |name: fn(&str) -> Id| -> Vec<Id> {
        paths.iter().map(|path| name(path.as_ref())).collect()
    };
    let in_name: [fn(&str) -> Id; 2] = [id_in_name, |path| Id::new(stem(path))];
    let mut ids = in_name.into_iter().map(call);
    ids.find(|ids| different(ids))
        .unwrap_or_else(|| call(Id::new))
}

/// An image's id from its file name: the number at the end (`val2014/COCO_val2014_000000391895.jpg`
/// is 391895), else the name itself. A hexadecimal name, as those of Open Images, has no number.
fn id_in_name(path: &str) -> Id {
    let stem = stem(path);
    let is_hexadecimal = stem.len() >= 8
        && stem.bytes().all(|byte| byte.is_ascii_hexdigit())
        && stem.bytes().any(|byte| byte.is_ascii_alphabetic());
    let digits = stem.len() - stem.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    match stem[stem.len() - digits..].parse() {
        Ok(number) if !is_hexadecimal => Id::Number(number),
        _ => Id::Text(stem.to_owned()),
    }
}

/// A file's name without its folders and its ending.
fn stem(path: &str) -> &str {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// The image of each text, from any caption dataset or from a plain list of image indices.
///
/// # Errors
/// As [`CaptionData::read`]; an entry that is no index.
pub fn read_image_of_text(file: &Path, split: &str) -> Result<Vec<usize>, EvalError> {
    let json = JsonFile::read(file)?;
    let is_list = json.text().trim_start().starts_with('[');
    if is_list
        && let Top::List(items) = json.top(LAYOUTS)?
        && items
            .first()
            .is_some_and(|item| !item.get().starts_with('{'))
    {
        let indices = items.iter().enumerate().map(|(index, item)| {
            item.get().parse().map_err(|_| {
                let problem = format!(
                    "is {:.40}; expected the index of the text's image: correct the file",
                    item.get()
                );
                EvalError::item(file, format!("item {index}"), problem)
            })
        });
        return indices.collect();
    }
    drop(json);
    Ok(CaptionData::read(file, split)?.image_of_text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_numbers_that_names_end_in() {
        for (name, id) in [
            ("val2014/COCO_val2014_000000391895.jpg", "391895"),
            ("1000092795.jpg", "1000092795"),
            ("a/b/n161313.jpg", "161313"),
            ("cat.png", "cat"),
            ("99999999999999999999.png", "99999999999999999999"),
            ("val/0013ea2087020901.jpg", "0013ea2087020901"),
            ("img_12.png", "12"),
        ] {
            assert_eq!(id_in_name(name), Id::new(id), "{name}");
        }
    }

    #[test]
    fn names_are_the_ids_where_their_numbers_repeat() {
        let ids = |paths: &[&str]| -> Vec<String> {
            ids_in_names(paths).iter().map(Id::to_string).collect()
        };
        assert_eq!(ids(&["a/beach_1.jpg", "b/dog_2.jpg"]), ["1", "2"]);
        assert_eq!(ids(&["beach_1.jpg", "dog_1.jpg"]), ["beach_1", "dog_1"]);
        assert_eq!(ids(&["beach_1.jpg", "0001.jpg"]), ["beach_1", "0001"]);
        assert_eq!(ids(&["a/1.jpg", "b/1.jpg"]), ["a/1.jpg", "b/1.jpg"]);
    }
}

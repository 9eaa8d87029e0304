//! Datasets of questions about images: VQAv2's pair of files, LAVIS's and mmpretrain's lists, and
//! GQA.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use serde_json::value::RawValue;

use super::json::{Item, JsonFile, Object, Top};
use super::vqa::GroundTruth;
use super::{EvalError, Id};

const LAYOUTS: &str = "VQAv2 ({\"questions\": […]} or {\"annotations\": […]}), a list of {\"question_id\", \"image\", \"question\", \"answer\"}, \
     or GQA's questions by id";

/// A question about an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ListedQuestion {
    /// Its text; empty where only annotations were read.
    pub text: String,
    /// The image's id, where the file gives one.
    pub image_id: Option<Id>,
    /// Where the image may lie below the image folder.
    pub image: Option<String>,
    /// What people answered; `None` for a test split without answers.
    pub truth: Option<GroundTruth>,
}

/// Questions in a file's order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuestionData {
    /// Where the answers, or else the questions, were read.
    pub file: PathBuf,
    /// Whether an answer is right or wrong as a whole, as in GQA, and not by how many people gave
    /// it.
    pub gqa: bool,
    /// The questions by id.
    pub questions: Vec<(Id, ListedQuestion)>,
}

impl QuestionData {
    /// Reads a file of annotations, of questions, or of both in one.
    ///
    /// # Errors
    /// A file of another layout; a missing or wrong field or an id given twice, named with its
    /// item.
    pub fn read(file: &Path) -> Result<Self, EvalError> {
        let json = JsonFile::read(file)?;
        let mut data = Self {
            file: file.into(),
            ..Self::default()
        };
        match json.top(LAYOUTS)? {
            Top::List(items) => data.read_list(&json, &items)?,
            Top::Object(top) if top.has("annotations") => data.read_annotations(&json, &top)?,
            Top::Object(top) if top.has("questions") => data.read_questions(&json, &top)?,
            Top::Object(top) if top.fields().all(|(_, raw)| raw.get().starts_with('{')) => {
                data.read_gqa(&json, &top)?
            }
            Top::Object(_) => return Err(json.layout("it is of another layout".into(), LAYOUTS)),
        }
        if data.questions.is_empty() {
            let problem = "no question in it; check that it is the right file".into();
            return Err(EvalError::Empty {
                file: file.into(),
                problem,
            });
        }
        let mut seen = HashMap::new();
        for (index, (id, _)) in data.questions.iter().enumerate() {
            if let Some(first) = seen.insert(id, index) {
                let problem = format!(
                    "is the question_id of item {first} too; each may be there once, so take one out"
                );
                return Err(EvalError::item(
                    file,
                    format!("item {index} (question_id {id})"),
                    problem,
                ));
            }
        }
        Ok(data)
    }

    /// Adds the texts of a questions file to annotations. The two must be of the same questions.
    ///
    /// # Errors
    /// As [`QuestionData::read`]; a question that one file has and the other has not.
    pub fn with_questions(mut self, file: &Path) -> Result<Self, EvalError> {
        let asked = Self::read(file)?;
        let mut by_id: HashMap<Id, ListedQuestion> = asked.questions.into_iter().collect();
        for (id, question) in &mut self.questions {
            let name = format!("question_id {id}");
            let Some(asked) = by_id.remove(id) else {
                let problem = format!(
                    "is not in {}; pass the questions of the same split",
                    file.display()
                );
                return Err(EvalError::item(&self.file, name, problem));
            };
            if let (Some(one), Some(other)) = (&question.image_id, &asked.image_id)
                && one != other
            {
                let problem = format!(
                    "is about image {other} here and image {one} in {}; pass the two files of one split",
                    self.file.display()
                );
                return Err(EvalError::item(file, name, problem));
            }
            question.text = asked.text;
            question.image_id = question.image_id.take().or(asked.image_id);
            question.image = question.image.take().or(asked.image);
        }
        match by_id.into_keys().min() {
            None => Ok(self),
            Some(id) => {
                let problem = format!(
                    "is not in {}; pass the annotations of the same split",
                    self.file.display()
                );
                Err(EvalError::item(file, format!("question_id {id}"), problem))
            }
        }
    }

    fn read_annotations(&mut self, json: &JsonFile, top: &Object<'_>) -> Result<(), EvalError> {
        for item in json.items(top, "annotations", LAYOUTS, "question_id")? {
            let item = item?;
            let question = ListedQuestion {
                image_id: Some(item.id("image_id")?),
                truth: Some(GroundTruth {
                    answers: answers(&item, "answers", Some("answer"))?,
                    question_type: Some(item.string("question_type")?.to_owned()),
                    answer_type: Some(item.string("answer_type")?.to_owned()),
                }),
                ..ListedQuestion::default()
            };
            item.optional_string("multiple_choice_answer")?;
            self.questions.push((item.id("question_id")?, question));
        }
        Ok(())
    }

    fn read_questions(&mut self, json: &JsonFile, top: &Object<'_>) -> Result<(), EvalError> {
        for item in json.items(top, "questions", LAYOUTS, "question_id")? {
            let item = item?;
            let question = ListedQuestion {
                text: item.string("question")?.to_owned(),
                image_id: Some(item.id("image_id")?),
                ..ListedQuestion::default()
            };
            self.questions.push((item.id("question_id")?, question));
        }
        Ok(())
    }

    /// LAVIS's and mmpretrain's lists: GQA's have one answer, VQAv2's a list of them or, for a test
    /// split, none.
    fn read_list(&mut self, json: &JsonFile, items: &[&RawValue]) -> Result<(), EvalError> {
        let mut kind = None;
        for (index, raw) in items.iter().enumerate() {
            let item = json.item(raw, "", index, "question_id")?;
            let answers = match item.get("answer") {
                None => None,
                Some(Value::String(answer)) => Some(vec![answer.clone()]),
                Some(_) => Some(answers(&item, "answer", None)?),
            };
            let one = item.get("answer").map(Value::is_string);
            if kind.is_some() && one.is_some() && one != kind {
                return Err(item.wrong(
                    "answer",
                    "is of another kind than the items' before: one answer here, a list there",
                ));
            }
            kind = kind.or(one);
            let text = |field| {
                item.optional_string(field)
                    .map(|text| text.map(str::to_owned))
            };
            let (question_type, answer_type) = (text("question_type")?, text("answer_type")?);
            let truth = answers.map(|answers| GroundTruth {
                answers,
                question_type,
                answer_type,
            });
            let question = ListedQuestion {
                text: item.string("question")?.to_owned(),
                image_id: None,
                image: Some(item.path("image")?.to_owned()),
                truth,
            };
            self.questions.push((item.id("question_id")?, question));
        }
        self.gqa = kind == Some(true);
        Ok(())
    }

    /// GQA's own files: questions by id, with their structural and semantic types.
    fn read_gqa(&mut self, json: &JsonFile, top: &Object<'_>) -> Result<(), EvalError> {
        self.gqa = true;
        for (id, raw) in top.fields() {
            let item = json.named_item(raw, format!("question {id}"))?;
            let of_type = |name: &str| {
                let kind = item.optional_inner_string("types", name)?;
                Ok::<_, EvalError>(kind.map(str::to_owned))
            };
            let (question_type, answer_type) = (of_type("semantic")?, of_type("structural")?);
            let truth = item.optional_string("answer")?.map(|answer| GroundTruth {
                answers: vec![answer.to_owned()],
                question_type,
                answer_type,
            });
            let image = item.id("imageId")?;
            let question = ListedQuestion {
                text: item.string("question")?.to_owned(),
                image: Some(format!("{image}.jpg")),
                image_id: Some(image),
                truth,
            };
            self.questions.push((Id::new(id), question));
        }
        Ok(())
    }
}

/// The people's answers, of which there must be one.
fn answers(item: &Item<'_>, field: &str, inner: Option<&str>) -> Result<Vec<String>, EvalError> {
    let answers = item.strings(field, inner)?;
    if answers.is_empty() {
        return Err(item.wrong(field, "is empty; expected at least one"));
    }
    Ok(answers)
}

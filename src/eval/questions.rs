//! Datasets of questions about images: VQAv2's pair of files, LAVIS's and mmpretrain's lists, GQA, VizWiz,
//! TextVQA and A-OKVQA.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use serde_json::value::RawValue;

use super::json::{Item, JsonFile, Object, Top};
use super::vqa::GroundTruth;
use super::{EvalError, Id};

const LAYOUTS: &str = "VQAv2 ({\"questions\": […]} or {\"annotations\": […]}), a list of {\"question_id\", \"image\", \"question\", \"answer\"}, \
     VizWiz's, TextVQA's or A-OKVQA's file, or GQA's questions by id";

/// Whose questions they are: what decides how answers are judged and handed in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Benchmark {
    /// VQAv2 and lists in its manner: ten answers, of which three make one right.
    #[default]
    Vqa,
    /// TextVQA: the same, with every answer normalised.
    TextVqa,
    /// GQA: an answer is right or wrong as a whole.
    Gqa,
    /// VizWiz: VQAv2's rules; a question goes by its image's name.
    VizWiz,
    /// A-OKVQA, direct answers: as many of ten as are equal letter by letter, three making one right. Questions
    /// marked `difficult_direct_answer` do not count.
    Aokvqa,
}

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
    /// Whose questions they are.
    pub benchmark: Benchmark,
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
            Top::List(items)
                if first_has(&items, "direct_answers") || first_has(&items, "choices") =>
            {
                data.read_aokvqa(&json, &items)?
            }
            Top::List(items)
                if first_has(&items, "question") && !first_has(&items, "question_id") =>
            {
                data.read_vizwiz(&json, &items)?
            }
            Top::List(items) => data.read_list(&json, &items)?,
            Top::Object(top) if top.has("data") => data.read_textvqa(&json, &top)?,
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
        if kind == Some(true) {
            self.benchmark = Benchmark::Gqa;
        }
        Ok(())
    }

    /// VizWiz: a question an image, whose name stands for both.
    fn read_vizwiz(&mut self, json: &JsonFile, items: &[&RawValue]) -> Result<(), EvalError> {
        self.benchmark = Benchmark::VizWiz;
        for (index, raw) in items.iter().enumerate() {
            let item = json.item(raw, "", index, "image")?;
            let image = item.path("image")?.to_owned();
            let truth = match item.get("answers") {
                None => None,
                Some(_) => Some(GroundTruth {
                    answers: answers(&item, "answers", Some("answer"))?,
                    question_type: None,
                    answer_type: item.optional_string("answer_type")?.map(str::to_owned),
                }),
            };
            let question = ListedQuestion {
                text: item.string("question")?.to_owned(),
                image_id: None,
                image: Some(image.clone()),
                truth,
            };
            self.questions.push((Id::new(&image), question));
        }
        Ok(())
    }

    /// TextVQA: images of Open Images by their ids.
    fn read_textvqa(&mut self, json: &JsonFile, top: &Object<'_>) -> Result<(), EvalError> {
        self.benchmark = Benchmark::TextVqa;
        for item in json.items(top, "data", LAYOUTS, "question_id")? {
            let item = item?;
            let image = item.id("image_id")?;
            let truth = match item.get("answers") {
                None => None,
                Some(_) => Some(GroundTruth {
                    answers: answers(&item, "answers", None)?,
                    ..GroundTruth::default()
                }),
            };
            let question = ListedQuestion {
                text: item.string("question")?.to_owned(),
                image: Some(format!("{image}.jpg")),
                image_id: Some(image),
                truth,
            };
            self.questions.push((item.id("question_id")?, question));
        }
        Ok(())
    }

    /// A-OKVQA, its own files and LAVIS's, which name the images. COCO's images go by their numbers else.
    fn read_aokvqa(&mut self, json: &JsonFile, items: &[&RawValue]) -> Result<(), EvalError> {
        self.benchmark = Benchmark::Aokvqa;
        for (index, raw) in items.iter().enumerate() {
            let item = json.item(raw, "", index, "question_id")?;
            // The test split has no answers. (LAVIS's lists hold them as a text of JSON.)
            let answers = match item.get("direct_answers") {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) => {
                    let answers = serde_json::from_str::<Vec<String>>(text);
                    Some(
                        answers
                            .map_err(|_| item.wrong("direct_answers", "is no list of answers"))?,
                    )
                }
                Some(_) => Some(answers(&item, "direct_answers", None)?),
            };
            let difficult = item.get("difficult_direct_answer");
            let is_difficult = difficult.is_some_and(|it| *it == Value::Bool(true) || it == "True");
            let truth = answers.map(|answers| GroundTruth {
                answers,
                answer_type: is_difficult.then(|| DIFFICULT.to_owned()),
                question_type: None,
            });
            let question = ListedQuestion {
                text: item.string("question")?.to_owned(),
                image: item.optional_string("image")?.map(str::to_owned),
                image_id: Some(item.id("image_id")?),
                truth,
            };
            self.questions.push((item.id("question_id")?, question));
        }
        Ok(())
    }

    /// GQA's own files: questions by id, with their structural and semantic types.
    fn read_gqa(&mut self, json: &JsonFile, top: &Object<'_>) -> Result<(), EvalError> {
        self.benchmark = Benchmark::Gqa;
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

/// The answer type of A-OKVQA's questions that direct answers are not judged by.
pub(super) const DIFFICULT: &str = "difficult";

/// Whether the first of some items has a field.
fn first_has(items: &[&RawValue], field: &str) -> bool {
    let first = items
        .first()
        .map(|item| serde_json::from_str::<Object<'_>>(item.get()));
    matches!(first, Some(Ok(object)) if object.has(field))
}

/// The people's answers, of which there must be one.
fn answers(item: &Item<'_>, field: &str, inner: Option<&str>) -> Result<Vec<String>, EvalError> {
    let answers = item.strings(field, inner)?;
    if answers.is_empty() {
        return Err(item.wrong(field, "is empty; expected at least one"));
    }
    Ok(answers)
}

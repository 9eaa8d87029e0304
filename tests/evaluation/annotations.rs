//! Every field of every layout of annotations and results: missing, null, or of a wrong type, it is named with its file
//! and item.

use std::path::Path;

use blip2_wgpu::eval::{CaptionData, EvalError, QuestionData, Results, read_image_of_text};
use serde_json::{Value, json};

/// What a field may be.
#[derive(Clone, Copy, PartialEq)]
enum Need {
    /// It must be there.
    Required,
    /// It may be missing, but not null.
    Optional,
    /// It may be missing or null.
    Nullable,
}
use Need::{Nullable, Optional, Required};

/// Types that a field may have beside those that no field has.
#[derive(Clone, Copy, PartialEq)]
enum Takes {
    /// A string.
    Text,
    /// A whole number or a string.
    Id,
    /// A list of strings, or of objects.
    List,
    /// A string or a list of strings.
    TextOrList,
    /// An object.
    Object,
}
use Takes::{Id, List, Object, Text, TextOrList};

/// A layout: a file that is right, where its second item lies, what that is called, and its fields.
struct Layout {
    name: &'static str,
    whole: Value,
    /// JSON pointer to the item to spoil.
    item: &'static str,
    /// What errors call it, and its id.
    called: [&'static str; 2],
    /// The field that has the id.
    id: &'static str,
    fields: Vec<(&'static str, Need, Takes)>,
    read: fn(&Path) -> Result<(), EvalError>,
}

fn captions(file: &Path) -> Result<(), EvalError> {
    CaptionData::read(file, "test").map(drop)
}

fn questions(file: &Path) -> Result<(), EvalError> {
    QuestionData::read(file).map(drop)
}

fn layouts() -> Vec<Layout> {
    let coco = json!({
        "images": [{"id": 5, "file_name": "5.jpg"}, {"id": 6, "file_name": "6.jpg", "coco_url": "http://a/b/6.jpg"}],
        "annotations": [{"id": 1, "image_id": 5, "caption": "a"}, {"id": 2, "image_id": 6, "caption": "b"}],
    });
    let item = |id: i64| json!({"question_id": id, "image": "a.jpg", "question": "what?", "answer": ["a", "b"]});
    let question = |id: i64| json!({"question_id": id, "image_id": 3, "question": "what?"});
    let annotation = |id: i64| {
        json!({"question_id": id, "image_id": 3, "question_type": "what", "answer_type": "other",
            "multiple_choice_answer": "a", "answers": [{"answer": "a", "answer_id": 1}]})
    };
    let vizwiz = |id: i64| {
        json!({"image": format!("VizWiz_val_{id}.jpg"), "question": "what?", "answer_type": "other", "answerable": 1,
            "answers": [{"answer": "a", "answer_confidence": "yes"}]})
    };
    let textvqa = |id: i64| json!({"question_id": id, "image_id": "003a8ae2ef43b901", "question": "what?", "answers": ["a", "b"]});
    let aokvqa = |id: &str| {
        json!({"question_id": id, "image_id": 9, "question": "what?", "choices": ["a"], "correct_choice_idx": 0,
            "direct_answers": ["a", "b"], "difficult_direct_answer": false})
    };
    let gqa = json!({
        "70": {"imageId": "n7", "question": "what?", "answer": "a"},
        "71": {"imageId": "n8", "question": "what?", "answer": "b", "types": {"semantic": "rel", "structural": "query"}},
    });
    let flickr = |id: i64, file: &str| json!({"filename": file, "filepath": "x", "imgid": id, "split": "test", "sentences": [{"raw": "a"}]});
    let mut with_coco_id = json!({"images": [flickr(0, "1.jpg"), flickr(1, "2.jpg")]});
    with_coco_id["images"][0]["cocoid"] = json!(8);
    with_coco_id["images"][1]["cocoid"] = json!(9);
    vec![
        Layout {
            name: "COCO's images",
            whole: coco.clone(),
            item: "/images/1",
            called: ["images[1]", "6"],
            id: "id",
            fields: vec![
                ("id", Required, Id),
                ("file_name", Nullable, Text),
                ("coco_url", Nullable, Text),
            ],
            read: captions,
        },
        Layout {
            name: "COCO's annotations",
            whole: coco,
            item: "/annotations/1",
            called: ["annotations[1]", "2"],
            id: "id",
            fields: vec![
                ("id", Required, Id),
                ("image_id", Required, Id),
                ("caption", Required, Text),
            ],
            read: captions,
        },
        Layout {
            name: "a Karpathy split",
            whole: json!([{"image": "a_1.png", "caption": ["a"]}, {"image": "a_2.png", "caption": ["b"]}]),
            item: "/1",
            called: ["item 1", "a_2.png"],
            id: "image",
            fields: vec![("image", Required, Text), ("caption", Required, TextOrList)],
            read: captions,
        },
        Layout {
            name: "Karpathy's dataset",
            whole: json!({"images": [flickr(0, "1.jpg"), flickr(1, "2.jpg")]}),
            item: "/images/1",
            called: ["images[1]", "2.jpg"],
            id: "filename",
            fields: vec![
                ("filename", Required, Text),
                ("filepath", Nullable, Text),
                ("split", Required, Text),
                ("imgid", Required, Id),
                ("sentences", Required, List),
            ],
            read: captions,
        },
        Layout {
            name: "Karpathy's dataset of COCO",
            whole: with_coco_id,
            item: "/images/1",
            called: ["images[1]", "2.jpg"],
            id: "filename",
            fields: vec![("cocoid", Required, Id)],
            read: captions,
        },
        Layout {
            name: "VQAv2's annotations",
            whole: json!({"annotations": [annotation(70), annotation(71)]}),
            item: "/annotations/1",
            called: ["annotations[1]", "71"],
            id: "question_id",
            fields: vec![
                ("question_id", Required, Id),
                ("image_id", Required, Id),
                ("question_type", Required, Text),
                ("answer_type", Required, Text),
                ("multiple_choice_answer", Nullable, Text),
                ("answers", Required, List),
            ],
            read: questions,
        },
        Layout {
            name: "VQAv2's answers",
            whole: json!({"annotations": [annotation(70), annotation(71)]}),
            item: "/annotations/1/answers/0",
            called: ["annotations[1]", "71"],
            id: "",
            fields: vec![("answer", Required, Text)],
            read: questions,
        },
        Layout {
            name: "VQAv2's questions",
            whole: json!({"questions": [question(70), question(71)]}),
            item: "/questions/1",
            called: ["questions[1]", "71"],
            id: "question_id",
            fields: vec![
                ("question_id", Required, Id),
                ("image_id", Required, Id),
                ("question", Required, Text),
            ],
            read: questions,
        },
        Layout {
            name: "LAVIS's list",
            whole: json!([item(70), item(71)]),
            item: "/1",
            called: ["item 1", "71"],
            id: "question_id",
            fields: vec![
                ("question_id", Required, Id),
                ("image", Required, Text),
                ("question", Required, Text),
                ("answer", Optional, List),
                ("question_type", Nullable, Text),
                ("answer_type", Nullable, Text),
            ],
            read: questions,
        },
        Layout {
            name: "VizWiz",
            whole: json!([vizwiz(70), vizwiz(71)]),
            item: "/1",
            called: ["item 1", "VizWiz_val_71.jpg"],
            id: "image",
            fields: vec![
                ("image", Required, Text),
                ("question", Required, Text),
                ("answers", Optional, List),
                ("answer_type", Nullable, Text),
            ],
            read: questions,
        },
        Layout {
            name: "TextVQA",
            whole: json!({"dataset_type": "val", "data": [textvqa(70), textvqa(71)]}),
            item: "/data/1",
            called: ["data[1]", "71"],
            id: "question_id",
            fields: vec![
                ("question_id", Required, Id),
                ("image_id", Required, Id),
                ("question", Required, Text),
                ("answers", Optional, List),
            ],
            read: questions,
        },
        Layout {
            name: "A-OKVQA",
            whole: json!([aokvqa("q70"), aokvqa("q71")]),
            item: "/1",
            called: ["item 1", "q71"],
            id: "question_id",
            fields: vec![
                ("question_id", Required, Id),
                ("image_id", Required, Id),
                ("question", Required, Text),
            ],
            read: questions,
        },
        Layout {
            name: "GQA's own file",
            whole: gqa.clone(),
            item: "/71",
            called: ["question 71", "71"],
            id: "",
            fields: vec![
                ("imageId", Required, Id),
                ("question", Required, Text),
                ("answer", Nullable, Text),
                ("types", Nullable, Object),
            ],
            read: questions,
        },
        Layout {
            name: "GQA's types",
            whole: gqa,
            item: "/71/types",
            called: ["question 71", "71"],
            id: "",
            fields: vec![("semantic", Nullable, Text), ("structural", Nullable, Text)],
            read: questions,
        },
        Layout {
            name: "captions to judge",
            whole: json!([{"image_id": 5, "caption": "a"}, {"image_id": 6, "caption": "b"}]),
            item: "/1",
            called: ["item 1", "6"],
            id: "image_id",
            fields: vec![("image_id", Required, Id), ("caption", Required, Text)],
            read: |file| Results::read_captions(file).map(drop),
        },
        Layout {
            name: "answers to judge",
            whole: json!([{"question_id": 5, "answer": "a"}, {"question_id": 6, "answer": "b"}]),
            item: "/1",
            called: ["item 1", "6"],
            id: "question_id",
            fields: vec![("question_id", Required, Id), ("answer", Required, Text)],
            read: |file| Results::read_answers(file).map(drop),
        },
        Layout {
            name: "LAVIS's answers to GQA",
            whole: json!([{"question_id": 5, "pred_ans": "a"}, {"question_id": 6, "pred_ans": "b"}]),
            item: "/1",
            called: ["item 1", "6"],
            id: "question_id",
            // Without it, the answer is missing by its usual name.
            fields: vec![("question_id", Required, Id), ("pred_ans", Optional, Text)],
            read: |file| Results::read_answers(file).map(drop),
        },
    ]
}

/// Values of every type; a field takes those that `right` says.
fn values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(1.5),
        json!(17),
        json!("text"),
        json!([1]),
        json!(["text", 2]),
        json!([null]),
        json!({"not": "this"}),
    ]
}

fn right(value: &Value, need: Need, takes: Takes) -> bool {
    match value {
        Value::Null => need == Nullable,
        Value::Number(number) => takes == Id && number.is_i64(),
        Value::String(_) => matches!(takes, Text | Id | TextOrList),
        Value::Object(_) => takes == Object,
        _ => false, // no list here has only strings
    }
}

#[test]
fn every_field_of_every_layout_is_named_where_it_is_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("spoilt.json");
    let mut tried = 0;
    for layout in layouts() {
        let read = |whole: &Value| {
            std::fs::write(&file, whole.to_string()).expect("written");
            (layout.read)(&file)
        };
        read(&layout.whole).unwrap_or_else(|error| panic!("{}: {error}", layout.name));
        for &(field, need, takes) in &layout.fields {
            let spoilt = |value: Option<&Value>| {
                let mut spoilt = layout.whole.clone();
                let item = spoilt
                    .pointer_mut(layout.item)
                    .and_then(Value::as_object_mut);
                let item = item.expect("an item");
                match value {
                    Some(value) => drop(item.insert(field.to_owned(), value.clone())),
                    None => drop(item.remove(field)),
                }
                spoilt
            };
            let check = |value: Option<&Value>, right: bool| {
                let what = format!("{}, {field}: {value:?}", layout.name);
                let error = match (read(&spoilt(value)), right) {
                    (Ok(()), true) => return,
                    (Ok(()), false) => panic!("{what} is taken"),
                    // Ids of other items, images that are not there: the value is of the right type.
                    (Err(error), true) => {
                        return assert!(!is_type_error(&error), "{what}: {error}");
                    }
                    (Err(error), false) => error.to_string(),
                };
                let [place, id] = layout.called;
                let id = if field == layout.id { "" } else { id };
                for part in ["spoilt.json: ", place, id, field] {
                    assert!(error.contains(part), "{what}: {error}");
                }
            };
            let may_miss = match field {
                "pred_ans" => false,
                _ => need != Required,
            };
            if field == "pred_ans" {
                let error = read(&spoilt(None))
                    .expect_err("nothing to judge")
                    .to_string();
                assert!(
                    error.contains("item 1") && error.contains("answer is missing"),
                    "{error}"
                );
            } else {
                check(None, may_miss);
            }
            for value in values() {
                check(Some(&value), self::right(&value, need, takes));
                tried += 1;
            }
        }
    }
    assert!(tried > 300, "{tried}");
}

fn is_type_error(error: &EvalError) -> bool {
    let text = error.to_string();
    text.contains("expected a") || text.contains("is missing")
}

#[test]
fn ids_that_come_twice_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("twice.json");
    let refused = |text: &str, read: fn(&Path) -> Result<(), EvalError>, parts: &[&str]| {
        std::fs::write(&file, text).expect("written");
        let error = read(&file).expect_err("refused").to_string();
        for part in [&["twice.json: "], parts].concat() {
            assert!(error.contains(part), "{error}");
        }
    };
    // A name that comes again would hide the first.
    let gqa =
        r#"{"70": {"imageId": "1", "question": "a?"}, "70": {"imageId": "2", "question": "b?"}}"#;
    refused(gqa, questions, &["\"70\"", "twice"]);
    refused(
        r#"{"images": [], "annotations": [], "images": []}"#,
        captions,
        &["\"images\"", "twice"],
    );
    let list = r#"[{"question_id": 7, "image": "a", "question": "a?"}, {"question_id": "7", "image": "a", "question": "a?"}]"#;
    refused(list, questions, &["question_id 7", "once"]);
    for field in ["img_id", "image_id", "id"] {
        let splits = r#"[{"image": "a.png", "ID": 1, "caption": ["a"]}, {"image": "b.png", "ID": 1, "caption": ["b"]}]"#;
        let parts = ["b.png", &format!("{field} 1"), "a.png"];
        refused(&splits.replace("ID", field), captions, &parts);
    }
    let training = r#"[{"image": "a.png", "image_id": 1, "caption": "a"}, {"image": "a.png", "image_id": 2, "caption": "b"}]"#;
    refused(
        training,
        captions,
        &[
            "item 1 (image a.png)",
            "image_id is 2",
            "calls the same image 1",
        ],
    );
    let flickr = r#"{"images": [{"filename": "1.jpg", "imgid": 4, "split": "test", "sentences": []},
        {"filename": "2.jpg", "imgid": 4, "split": "test", "sentences": []}]}"#;
    refused(flickr, captions, &["images[1] (filename 2.jpg)", "id 4"]);
}

#[test]
fn images_of_lists_have_the_ids_that_the_list_gives() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("list.json");
    let ids = |list: Value| -> Vec<String> {
        std::fs::write(&file, list.to_string()).expect("written");
        let data = CaptionData::read(&file, "test").expect("read");
        data.images
            .iter()
            .map(|image| image.id.to_string())
            .collect()
    };
    let item = |image: &str, more: Value| {
        let mut item = json!({"image": image, "caption": "a"});
        let fields = item.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        item
    };
    // LAVIS's file of nocaps numbers images whose names are hexadecimal.
    let [one, other] = ["val/0013ea2087020901.png", "val/003d9d7a4f2ba1f7.png"];
    let numbered = [
        item(one, json!({"img_id": 0, "id": 9})),
        item(other, json!({"img_id": 1, "id": 9})),
    ];
    assert_eq!(ids(json!(numbered)), ["0", "1"]);
    let nameless = [item(one, json!({})), item(other, json!({}))];
    assert_eq!(
        ids(json!(nameless)),
        ["0013ea2087020901", "003d9d7a4f2ba1f7"]
    );
    let of_coco = [
        item("1.png", json!({"image_id": "coco_7"})),
        item("1.png", json!({"image_id": "coco_7"})),
    ];
    assert_eq!(ids(json!(of_coco)), ["coco_7"]);
    // Here the ids are the captions'.
    let of_captions = [
        item("a_5.png", json!({"id": 1})),
        item("a_5.png", json!({"id": 2})),
    ];
    assert_eq!(ids(json!(of_captions)), ["5"]);
    let equal_numbers = [item("beach_1.png", json!({})), item("dog_1.png", json!({}))];
    assert_eq!(ids(json!(equal_numbers)), ["beach_1", "dog_1"]);
}

#[test]
fn an_index_of_texts_is_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("list.json");
    for (text, part) in [
        ("[0, 1.5]", "item 1"),
        ("[0, null]", "item 1"),
        ("[-1]", "item 0"),
    ] {
        std::fs::write(&file, text).expect("written");
        let error = read_image_of_text(&file, "test")
            .expect_err("refused")
            .to_string();
        assert!(
            error.contains("list.json: ") && error.contains(part),
            "{error}"
        );
    }
}

#[test]
fn captions_in_tables_and_lines_are_those_of_a_list() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).expect("written");
        CaptionData::read(&file, "test").map_err(|error| error.to_string())
    };
    let list = r#"[{"image": "1000.jpg", "caption": ["a dog", "it runs"]}, {"image": "1001.jpg", "caption": ["a cat"]}]"#;
    let list = read("list.json", list).expect("a list");
    for (name, text) in [
        (
            "captions.txt",
            "image,caption\n1000.jpg,a dog\n1000.jpg,it runs\n1001.jpg,a cat\n",
        ),
        (
            "results.csv",
            "image_name| comment_number| comment\n1000.jpg| 0| a dog\n1000.jpg| 1| it runs\n1001.jpg| 0| a cat\n",
        ),
        (
            "f.token.txt",
            "1000.jpg#0\ta dog\n1000.jpg#1\tit runs\n1001.jpg#0\ta cat\n",
        ),
        (
            "lines.jsonl",
            "{\"image\": \"1000.jpg\", \"caption\": [\"a dog\", \"it runs\"]}\n{\"image\": \"1001.jpg\", \"caption\": \"a cat\"}\n",
        ),
        (
            "metadata.jsonl",
            "{\"file_name\": \"1000.jpg\", \"text\": \"a dog\"}\n{\"file_name\": \"1000.jpg\", \"text\": \"it runs\"}\n{\"file_name\": \"1001.jpg\", \"text\": \"a cat\"}\n",
        ),
        (
            "hf.csv",
            "raw,split,filename\n\"[\"\"a dog\"\", \"\"it runs\"\"]\",test,1000.jpg\n\"[\"\"no\"\"]\",train,3.jpg\n\"[\"\"a cat\"\"]\",test,1001.jpg\n",
        ),
    ] {
        let data = read(name, text).expect(name);
        assert_eq!(
            (&data.images, &data.texts),
            (&list.images, &list.texts),
            "{name}"
        );
    }
    let one = read(
        "one.jsonl",
        "{\"image\": \"1000.jpg\", \"caption\": \"a dog\"}\n",
    )
    .expect("one");
    assert_eq!((one.images.len(), one.texts.len()), (1, 1));
    for (name, text, part) in [
        ("other.csv", "a,b\n1,2\n", "other.csv"),
        (
            "short.csv",
            "image,caption\n1.jpg,a\n2.jpg\n",
            "line 3 has no caption",
        ),
        (
            "cut.jsonl",
            "{\"image\": \"1.jpg\", \"caption\": \"a\"}\n{\"image\": \"2.jp",
            "cut.jsonl",
        ),
        (
            "train.csv",
            "filename,raw,split\n1.jpg,a,train\n",
            "no image in it (split test)",
        ),
    ] {
        let error = read(name, text).expect_err("refused");
        assert!(error.contains(part), "{error}");
    }
}

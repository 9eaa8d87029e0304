use super::*;

const FIELDS: ResultFields = ResultFields::CAPTION;

fn settings(beams: i64) -> Map<String, Value> {
    Map::from_iter([("beams".to_owned(), json!(beams))])
}

fn add(predictions: &mut Predictions, ids: &[i64]) {
    let items = ids
        .iter()
        .map(|&id| (Id::Number(id), json!(format!("text {id}"))));
    predictions.add(items.collect()).expect("written");
}

#[test]
fn a_run_cut_at_any_byte_goes_on_without_loss() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("p.jsonl");
    let mut whole = Predictions::open(&file, FIELDS, &settings(1), None).expect("made");
    add(&mut whole, &[1, 2]);
    add(&mut whole, &[3]);
    let bytes = std::fs::read(&file).expect("bytes");
    for cut in 0..=bytes.len() {
        std::fs::write(&file, &bytes[..cut]).expect("cut");
        let mut again = Predictions::open(&file, FIELDS, &settings(1), None).expect("opened");
        let missing: Vec<i64> = (1..=3)
            .filter(|&id| again.get(&Id::Number(id)).is_none())
            .collect();
        let lines = bytes[..cut].iter().filter(|&&byte| byte == b'\n').count();
        assert_eq!(missing.len(), 3 - lines.saturating_sub(1), "cut at {cut}");
        add(&mut again, &missing);
        assert_eq!(std::fs::read(&file).expect("bytes"), bytes, "cut at {cut}");
    }
}

#[test]
fn what_does_not_belong_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("p.jsonl");
    add(
        &mut Predictions::open(&file, FIELDS, &settings(1), None).expect("made"),
        &[1, 2],
    );
    let error = |file: &Path, beams| {
        Predictions::open(file, FIELDS, &settings(beams), None)
            .expect_err("refused")
            .to_string()
    };
    assert!(error(&file, 5).contains("beams 1, not 5"));
    let text = std::fs::read_to_string(&file).expect("text");
    for (from, to, part) in [
        ("text 1\",", "text 1,", "line 2 is damaged"),
        ("\"image_id\":2", "\"image_id\":1", "image_id 1 again"),
        ("{\"settings\"", "{\"other\"", "no settings"),
    ] {
        let spoilt = text.replace(from, to) + "{}\n";
        std::fs::write(&file, spoilt).expect("spoilt");
        assert!(error(&file, 1).contains(part), "{}", error(&file, 1));
    }
}

#[test]
fn shards_join_and_disagreeing_ones_do_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    for (name, ids) in [("a", [1, 3]), ("b", [2, 4])] {
        add(
            &mut Predictions::open(&path(name), FIELDS, &settings(1), None).expect("made"),
            &ids,
        );
    }
    let merged = Predictions::merge(&path("m"), FIELDS, &[path("a"), path("b")]).expect("merged");
    let ids: Vec<Id> = (1..=4).map(Id::Number).collect();
    assert_eq!(
        merged.official(FIELDS, &ids).as_array().map(Vec::len),
        Some(4)
    );
    let mut other = Predictions::open(&path("c"), FIELDS, &settings(1), None).expect("made");
    other
        .add(vec![(Id::Number(1), json!("something else"))])
        .expect("written");
    let error =
        Predictions::merge(&path("n"), FIELDS, &[path("a"), path("c")]).expect_err("refused");
    assert!(error.to_string().contains("image_id 1"), "{error}");
    let mut other = Predictions::open(&path("d"), FIELDS, &settings(2), None).expect("made");
    other.begin().expect("written");
    assert!(Predictions::merge(&path("o"), FIELDS, &[path("a"), path("d")]).is_err());
    // Into a folder that has one already: anew, unless those are another run's.
    let merged = Predictions::merge(&path("m"), FIELDS, &[path("a")]).expect("merged");
    assert!(merged.get(&Id::Number(2)).is_none());
    add(&mut other, &[1]);
    let error = Predictions::merge(&path("d"), FIELDS, &[path("a")]).expect_err("refused");
    assert!(error.to_string().contains("another --out"), "{error}");
}

#[test]
fn only_a_file_with_predictions_is_bound_to_its_settings() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("p.jsonl");
    let open = |beams| Predictions::open(&file, FIELDS, &settings(beams), None);
    open(1).expect("opened");
    assert!(!file.exists(), "a run that never began leaves nothing");
    open(1).expect("opened").begin().expect("written");
    let mut second = open(2).expect("nothing is done yet");
    add(&mut second, &[1]);
    assert!(open(1).is_err());
    let line = std::fs::read_to_string(&file).expect("text");
    assert!(line.starts_with("{\"settings\":{\"beams\":2}}\n"), "{line}");
}

#[test]
fn names_may_change_and_content_may_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let with = |changes: &[(&str, &str)]| {
        let mut settings: Map<String, Value> = [
            ("model", "tiny"),
            ("model_fingerprint", "1"),
            ("annotations", "a.json"),
            ("annotations_hash", "2"),
            ("images", "/here"),
            ("limit", "5"),
        ]
        .iter()
        .chain(changes)
        .map(|&(key, value)| (key.to_owned(), json!(value)))
        .collect();
        settings.retain(|_, value| value != "");
        settings
    };
    let made = |name: &str, settings: &Map<String, Value>, id| {
        let mut made = Predictions::open(&path(name), FIELDS, settings, None).expect("made");
        add(&mut made, &[id]);
    };
    made("a", &with(&[]), 1);
    let goes_on = |changes: &[(&str, &str)]| {
        Predictions::open(&path("a"), FIELDS, &with(changes), Some("limit"))
            .map_err(|error| error.to_string())
    };
    let joins = |changes: &[(&str, &str)]| {
        made("b", &with(changes), 2);
        let parts = [path("a"), path("b")];
        let merged = Predictions::merge(&path("m"), FIELDS, &parts);
        std::fs::remove_file(path("b")).expect("removed");
        merged.map_err(|error| error.to_string())
    };
    for harmless in [("model", "copy"), ("annotations", "b.json")] {
        goes_on(&[harmless]).expect("the same content");
        joins(&[harmless]).expect("the same content");
    }
    for (change, part) in [
        (("model_fingerprint", "7"), "another model: \"tiny\""),
        (("model_fingerprint", "7"), "of other content"),
        (("annotations_hash", "7"), "another annotations: \"a.json\""),
    ] {
        for error in [goes_on(&[change]), joins(&[change])] {
            let error = error.expect_err("refused");
            assert!(error.contains(part), "{error}");
        }
    }
    // Two machines have their images elsewhere; two shards have one limit.
    joins(&[("images", "/there")]).expect("joined");
    assert!(goes_on(&[("images", "/there")]).is_err());
    assert!(joins(&[("limit", "6")]).is_err());
    let mut further = goes_on(&[("limit", "6")]).expect("a longer run");
    add(&mut further, &[3]);
    drop(further);
    let text = std::fs::read_to_string(path("a")).expect("text");
    assert_eq!(text.lines().count(), 3);
    assert!(
        text.lines()
            .next()
            .is_some_and(|line| line.contains("\"limit\":\"6\""))
    );
}

#[test]
fn shards_take_every_item_once() {
    let shards: Vec<Shard> = (1..=3)
        .map(|i| format!("{i}/3").parse().expect("a shard"))
        .collect();
    for item in 0..10 {
        assert_eq!(shards.iter().filter(|shard| shard.has(item)).count(), 1);
    }
    for wrong in ["0/3", "4/3", "1", "a/b", "1/0", ""] {
        assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
    }
}

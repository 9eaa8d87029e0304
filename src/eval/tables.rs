//! Captions in tables: CSV as Kaggle and Hugging Face have Flickr8k and Flickr30k, and the `.token` files of
//! those datasets themselves.

use std::path::Path;

use super::EvalError;

/// What columns with the images' names are called.
pub(super) const IMAGE_FIELDS: [&str; 7] = [
    "image",
    "image_name",
    "file_name",
    "filename",
    "image_path",
    "file",
    "path",
];

/// What columns with captions are called.
pub(super) const CAPTION_FIELDS: [&str; 7] = [
    "caption",
    "pred_caption",
    "captions",
    "comment",
    "text",
    "sentence",
    "raw",
];

/// A row of a table.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    /// Its line, from 1.
    pub line: usize,
    pub image: String,
    pub captions: Vec<String>,
    /// The image's id, where there is a column for it, and what that is called.
    pub id: Option<(&'static str, String)>,
    /// The split that it belongs to, where there is a column for it.
    pub split: Option<String>,
}

/// The rows of `text`; `None` where it is no such table: it is JSON, or another.
///
/// # Errors
/// A row that lacks a column, named with its line.
pub(super) fn read(
    text: &str,
    file: &Path,
    id_fields: &[&'static str],
) -> Option<Result<Vec<Row>, EvalError>> {
    let first = text.lines().find(|line| !line.trim().is_empty())?;
    if first.trim_start().starts_with(['{', '[']) {
        return None;
    }
    if token_line(first).is_some() {
        return Some(read_tokens(text, file));
    }
    let delimiter = ['\t', '|', ',']
        .into_iter()
        .find(|&mark| first.contains(mark))?;
    let names: Vec<String> = (first.split(delimiter))
        .map(|name| name.trim().trim_matches('"').to_lowercase())
        .collect();
    let find = |fields: &[&str]| {
        let mut fields = fields.iter();
        fields.find_map(|field| names.iter().position(|name| name == field))
    };
    let columns = Columns {
        image: find(&IMAGE_FIELDS)?,
        caption: find(&CAPTION_FIELDS)?,
        id: (id_fields.iter()).find_map(|field| Some((*field, find(&[field])?))),
        split: find(&["split"]),
    };
    Some(read_columns(text, file, delimiter, &columns))
}

/// Where the columns stand.
struct Columns {
    image: usize,
    caption: usize,
    id: Option<(&'static str, usize)>,
    split: Option<usize>,
}

fn read_columns(
    text: &str,
    file: &Path,
    delimiter: char,
    columns: &Columns,
) -> Result<Vec<Row>, EvalError> {
    let mut reader = csv::ReaderBuilder::new()
        // One ASCII character, as all three are.
        .delimiter(delimiter as u8)
        // Tables by tabs or bars have captions as they are, quotes among them.
        .quoting(delimiter == ',')
        .flexible(true)
        .from_reader(text.as_bytes());
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record
            .map_err(|error| EvalError::item(file, "a row", format!("cannot be read ({error})")))?;
        let line = record
            .position()
            .map_or(0, |position| position.line() as usize);
        let cell = |column: usize, what: &str| match record.get(column).map(str::trim) {
            Some("") | None => {
                let problem = format!("has no {what}; correct the line or take it out");
                Err(EvalError::item(file, format!("line {line}"), problem))
            }
            Some(text) => Ok(text.to_owned()),
        };
        rows.push(Row {
            line,
            image: cell(columns.image, "image")?,
            captions: captions(cell(columns.caption, "caption")?),
            id: match columns.id {
                Some((name, column)) => Some((name, cell(column, name)?)),
                None => None,
            },
            split: columns
                .split
                .map(|column| cell(column, "split"))
                .transpose()?,
        });
    }
    Ok(rows)
}

/// The captions of a cell: one, or a JSON list of them, as Hugging Face's table of Flickr30k has it.
fn captions(cell: String) -> Vec<String> {
    match serde_json::from_str::<Vec<String>>(&cell) {
        Ok(captions) => captions,
        Err(_) => vec![cell],
    }
}

/// `NAME#NUMBER<tab>CAPTION` a line.
fn read_tokens(text: &str, file: &Path) -> Result<Vec<Row>, EvalError> {
    let lines = (1..).zip(text.lines());
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let row = |(line, text)| match token_line(text) {
        Some((image, caption)) => Ok(Row {
            line,
            image: image.to_owned(),
            captions: vec![caption.to_owned()],
            id: None,
            split: None,
        }),
        None => Err(EvalError::item(
            file,
            format!("line {line}"),
            "is not NAME#NUMBER, a tab and a caption; correct the line or take it out",
        )),
    };
    lines.map(row).collect()
}

/// The name and the caption of a line of a `.token` file.
fn token_line(line: &str) -> Option<(&str, &str)> {
    let (name, caption) = line.split_once('\t')?;
    let (image, number) = name.rsplit_once('#')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !image.is_empty() && !caption.trim().is_empty()).then(|| (image, caption.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Option<Result<Vec<Row>, String>> {
        let rows = read(text, Path::new("t.csv"), &["img_id"]);
        rows.map(|rows| rows.map_err(|error| error.to_string()))
    }

    /// Image and captions of each row.
    fn said(text: &str) -> Vec<(String, String)> {
        let rows = rows(text).expect("a table").expect("rows");
        let said = rows
            .into_iter()
            .map(|row| (row.image, row.captions.join(" / ")));
        said.collect()
    }

    #[test]
    fn tables_of_every_kind() {
        let pair = |image: &str, caption: &str| (image.to_owned(), caption.to_owned());
        let two = [pair("1.jpg", "A \"red\" dot, big"), pair("1.jpg", "a dot")];
        assert_eq!(
            said("image,caption\n1.jpg,\"A \"\"red\"\" dot, big\"\n1.jpg,a dot\n"),
            two
        );
        assert_eq!(
            said(
                "image_name| comment_number| comment\r\n1.jpg| 0| A \"red\" dot, big\r\n1.jpg| 1| a dot\r\n"
            ),
            two
        );
        assert_eq!(said("1.jpg#0\tA \"red\" dot, big\n1.jpg#1\ta dot\n"), two);
        assert_eq!(
            said("Caption\tFile_Name\nA \"red\" dot, big\t1.jpg\na dot\t1.jpg"),
            two
        );
        let listed = "raw,sentids,split,filename,img_id\n\"[\"\"a\"\", \"\"b\"\"]\",\"[0, 1]\",test,5.jpg,7\n";
        assert_eq!(said(listed), [pair("5.jpg", "a / b")]);
        let row = &rows(listed).unwrap().unwrap()[0];
        assert_eq!((row.line, row.split.as_deref()), (2, Some("test")));
        assert_eq!(row.id, Some(("img_id", "7".to_owned())));
    }

    #[test]
    fn what_is_no_table_is_left_to_others() {
        for text in [
            "",
            "{}",
            " [1, 2]",
            "a,b\n1,2",
            "hello\tworld",
            "image\n1.jpg",
        ] {
            assert_eq!(rows(text), None, "{text}");
        }
    }

    #[test]
    fn a_row_that_lacks_something_is_named() {
        for (text, line) in [
            ("image,caption\n1.jpg,a\n2.jpg\n", "line 3 has no caption"),
            ("image,caption\n,a\n", "line 2 has no image"),
            // As the published table has it.
            (
                "image_name| comment_number| comment\n2199200615.jpg| 4   A dog runs .\n",
                "line 2 has no caption",
            ),
            ("1.jpg#0\ta\n1.jpg a\n", "line 2 is not NAME#NUMBER"),
        ] {
            let error = rows(text).expect("a table").expect_err("refused");
            assert!(error.contains(line), "{error}");
        }
    }
}

//! Whether a caption of the demo world is exactly true: parsed back into facts and compared with
//! the scene's. The grammar and what its sentences state are those of
//! `weights-tools/scenes/language.py`.

use std::path::Path;

use serde::Deserialize;

use crate::eval::{EvalError, Id};
use crate::files::bounded::{self, MAX_TEXT_BYTES};
use crate::files::text;

const COLORS: [&str; 10] = [
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black",
];
const SHAPES: [&str; 8] = [
    "circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart",
];
const SIZES: [&str; 2] = ["small", "large"];
const NUMBERS: [&str; 5] = ["zero", "one", "two", "three", "four"];
const RELATIONS: [&str; 4] = ["left of", "right of", "above", "below"];
const PLACES: [&str; 5] = [
    "top left",
    "top right",
    "bottom left",
    "bottom right",
    "middle",
];

/// Side of the picture that the facts are in, in pixels.
const CANVAS: f64 = 128.0;
/// Centres closer than this along an axis are in no relation along it.
const RELATION_GAP: f64 = 16.0;

/// What is in a picture of the demo world.
#[derive(Debug, Clone, Deserialize)]
pub struct Scene {
    /// The picture's id in the annotation files.
    pub image_id: i64,
    /// From left to right.
    pub objects: Vec<SceneObject>,
    /// Whether some object has a combination of colour and shape that training never shows.
    #[serde(default)]
    pub held_out: bool,
}

/// One object of a scene.
#[derive(Debug, Clone, Deserialize)]
pub struct SceneObject {
    /// Its shape's name.
    pub shape: String,
    /// Its colour's name.
    pub color: String,
    /// `small` or `large`
    pub size: String,
    /// Its centre, pixels from the left.
    pub x: f64,
    /// Its centre, pixels from the top.
    pub y: f64,
}

/// Reads a facts file, as `python -m scenes write` makes it.
///
/// # Errors
/// The file cannot be read, or is no list of scenes.
pub fn read_scenes(file: &Path) -> Result<Vec<Scene>, EvalError> {
    let bytes = bounded::read(file, MAX_TEXT_BYTES).map_err(EvalError::read(file))?;
    text::json(&bytes).map_err(|cause| EvalError::Empty {
        file: file.into(),
        problem: format!("no facts of scenes ({cause}); `python -m scenes write` makes them"),
    })
}

/// An object as a caption names it.
struct Mention<'t> {
    size: Option<&'t str>,
    color: &'t str,
    shape: &'t str,
}

/// What a caption states.
enum Statement<'t> {
    Relation(Mention<'t>, &'static str, Mention<'t>),
    Place(Mention<'t>, &'static str),
    Inventory {
        mentions: Vec<Mention<'t>>,
        number: Option<usize>,
        ordered: bool,
    },
}

impl Scene {
    /// Whether `caption` is a sentence of the world's grammar and all that it states is so. An
    /// inventory must name every object once and no other.
    #[must_use]
    pub fn is_true(&self, caption: &str) -> bool {
        let words: Vec<_> = caption.split_whitespace().collect();
        let text = words.join(" ").to_lowercase();
        let text = text.trim_end_matches('.').trim_end();
        match parse(text) {
            None => false,
            Some(Statement::Relation(first, relation, second)) => {
                match (self.find(&first), self.find(&second)) {
                    (Some(first), Some(second)) => holds(first, relation, second),
                    _ => false,
                }
            }
            Some(Statement::Place(mention, place)) => {
                let there =
                    |object: &SceneObject| mention.fits(object) && place_of(object) == Some(place);
                self.objects.iter().any(there)
            }
            Some(Statement::Inventory {
                mentions,
                number,
                ordered,
            }) => {
                let in_order = || mentions.iter().zip(&self.objects).all(|(c, o)| c.fits(o));
                self.has_exactly(&mentions)
                    && number.is_none_or(|number| number == self.objects.len())
                    && (!ordered || in_order())
            }
        }
    }

    /// The picture's id as results have it.
    #[must_use]
    pub fn id(&self) -> Id {
        Id::Number(self.image_id)
    }

    fn find(&self, mention: &Mention) -> Option<&SceneObject> {
        self.objects.iter().find(|object| mention.fits(object))
    }

    fn has_exactly(&self, mentions: &[Mention]) -> bool {
        let mut left: Vec<_> = self.objects.iter().collect();
        for mention in mentions {
            match left.iter().position(|object| mention.fits(object)) {
                Some(place) => drop(left.remove(place)),
                None => return false,
            }
        }
        left.is_empty()
    }
}

impl Mention<'_> {
    fn fits(&self, object: &SceneObject) -> bool {
        self.color == object.color
            && self.shape == object.shape
            && self.size.is_none_or(|size| size == object.size)
    }
}

/// Whether "first relation second" is so; too close along the axis is not.
fn holds(first: &SceneObject, relation: &str, second: &SceneObject) -> bool {
    let distance = match relation {
        "left of" => second.x - first.x,
        "right of" => first.x - second.x,
        "above" => second.y - first.y,
        _ => first.y - second.y,
    };
    distance >= RELATION_GAP
}

/// The part of the picture an object is in; none near a border between parts.
fn place_of(object: &SceneObject) -> Option<&'static str> {
    let (dx, dy) = (object.x - CANVAS / 2.0, object.y - CANVAS / 2.0);
    if dx.abs().max(dy.abs()) <= RELATION_GAP / 2.0 {
        return Some("middle");
    }
    if dx.abs().min(dy.abs()) < RELATION_GAP {
        return None;
    }
    Some(match (dy < 0.0, dx < 0.0) {
        (true, true) => "top left",
        (true, false) => "top right",
        (false, true) => "bottom left",
        (false, false) => "bottom right",
    })
}

/// What `text` states; `None` if it is no sentence of the grammar.
fn parse(text: &str) -> Option<Statement<'_>> {
    if let Some(statement) = parse_relation(text) {
        return Some(statement);
    }
    if let Some((object, place)) = text.rsplit_once(" in the ")
        && let Some(place) = PLACES.into_iter().find(|&known| known == place)
    {
        return Some(Statement::Place(parse_object(object)?, place));
    }
    let (number, text) = match parse_number(text) {
        Some((number, rest)) => (Some(number), rest),
        None => (None, text),
    };
    let ordered = text.strip_prefix("from left to right: ");
    let mut text = ordered.unwrap_or(text);
    for start in ["a picture of ", "only "] {
        text = text.strip_prefix(start).unwrap_or(text);
    }
    let mentions: Option<Vec<_>> = text
        .split(", ")
        .flat_map(|part| part.split(if ordered.is_some() { "\0" } else { " and " }))
        .map(parse_object)
        .collect();
    Some(Statement::Inventory {
        mentions: mentions?,
        number,
        ordered: ordered.is_some(),
    })
}

/// `the red ring is above the blue star`
fn parse_relation(text: &str) -> Option<Statement<'_>> {
    let (first, rest) = text.strip_prefix("the ")?.split_once(" is ")?;
    let relation = RELATIONS
        .into_iter()
        .find(|relation| rest.starts_with(relation))?;
    let second = rest[relation.len()..].strip_prefix(" the ")?;
    let name = |text| parse_words(text).filter(|mention| mention.size.is_none());
    Some(Statement::Relation(name(first)?, relation, name(second)?))
}

/// `two shapes: …`
fn parse_number(text: &str) -> Option<(usize, &str)> {
    let (number, rest) = text.split_once(' ')?;
    let rest = rest
        .strip_prefix("shapes: ")
        .or_else(|| rest.strip_prefix("shape: "))?;
    let number = NUMBERS.into_iter().position(|known| known == number)?;
    Some((number, rest))
}

/// `a red ring`, `a large red ring`
fn parse_object(text: &str) -> Option<Mention<'_>> {
    let words = text
        .strip_prefix("a ")
        .or_else(|| text.strip_prefix("an "))?;
    parse_words(words)
}

/// `red ring`, `large red ring`
fn parse_words(text: &str) -> Option<Mention<'_>> {
    let words: Vec<_> = text.split(' ').collect();
    let (size, color, shape) = match words[..] {
        [color, shape] => (None, color, shape),
        [size, color, shape] => (Some(size), color, shape),
        _ => return None,
    };
    let known = COLORS.contains(&color)
        && SHAPES.contains(&shape)
        && size.is_none_or(|size| SIZES.contains(&size));
    known.then_some(Mention { size, color, shape })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(size: &str, color: &str, shape: &str, x: f64, y: f64) -> SceneObject {
        SceneObject {
            shape: shape.into(),
            color: color.into(),
            size: size.into(),
            x,
            y,
        }
    }

    /// A large red ring at the top left, a small blue star in the middle.
    fn scene() -> Scene {
        Scene {
            image_id: 1,
            objects: vec![
                object("large", "red", "ring", 30.0, 30.0),
                object("small", "blue", "star", 66.0, 60.0),
            ],
            held_out: false,
        }
    }

    #[test]
    fn true_sentences_of_every_form() {
        let scene = scene();
        for text in [
            "a red ring and a blue star",
            "A blue star and a red  ring.",
            "a large red ring and a blue star",
            "from left to right: a red ring, a blue star",
            "two shapes: a red ring and a small blue star",
            "a picture of a red ring and a blue star",
            "the red ring is left of the blue star",
            "the blue star is below the red ring",
            "a red ring in the top left",
            "a small blue star in the middle",
        ] {
            assert!(scene.is_true(text), "{text}");
        }
        let alone = Scene {
            objects: vec![object("small", "orange", "star", 10.0, 100.0)],
            ..scene
        };
        assert!(alone.is_true("only an orange star"));
        assert!(alone.is_true("one shape: an orange star"));
    }

    #[test]
    fn false_sentences_and_what_is_no_sentence() {
        let scene = scene();
        for text in [
            "",
            "a red ring",
            "a red ring, a red ring and a blue star",
            "a small red ring and a blue star",
            "a red star and a blue ring",
            "from left to right: a blue star, a red ring",
            "from left to right: a red ring and a blue star",
            "three shapes: a red ring and a blue star",
            "the red ring is right of the blue star",
            "the red ring is above the green star",
            "the large red ring is left of the blue star",
            "a red ring in the middle",
            "a red ring and a blue star in the middle",
            "a photo of a red ring and a blue star",
            "red ring and blue star",
        ] {
            assert!(!scene.is_true(text), "{text}");
        }
        // 12 pixels apart is too close for a relation.
        let close = Scene {
            objects: vec![
                object("small", "red", "ring", 30.0, 30.0),
                object("small", "blue", "star", 42.0, 60.0),
            ],
            ..scene
        };
        assert!(!close.is_true("the red ring is left of the blue star"));
        assert!(close.is_true("the red ring is above the blue star"));
    }
}

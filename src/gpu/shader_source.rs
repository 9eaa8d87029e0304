//! Shader files and how a kernel's text is put together from them.
//!
//! A file names the files it needs, each of which stands once before it:
//!
//! ```text
//! #import shared/activate
//! #import shared/weights_{weights}
//! ```
//!
//! and may have copies of some lines written out, one for each value of a letter (docs/rejected.md tells why not as loops):
//!
//! ```text
//! #for i in 0..8
//!     let x_$i = x[x_at_$i + unit];
//! #end
//! ```
//!
//! Names are paths under `shaders/`, without `.wgsl`. What stands in braces is chosen by the kernel ([`Kernel::choices`]):
//! WGSL cannot choose a type or a function by a constant. `enable` directives of all files come first, as WGSL wants
//! them. What a compiler says about a line of the whole text is told as file and line of the source.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use include_dir::{Dir, include_dir};

use super::{GpuError, Kernel};

/// The text of a kernel.
#[derive(Debug)]
pub(crate) struct ShaderText {
    pub text: String,
    /// Whether all of it is this program's own, and nothing comes from [`super::GpuOptions::shaders`] that differs from it.
    pub is_own: bool,
    /// A hash of the text.
    pub hash: u64,
    /// Where each line comes from.
    places: Vec<Place>,
}

/// A line of a shader file.
#[derive(Debug, Clone)]
struct Place {
    file: Arc<str>,
    line: usize,
}

impl Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "shaders/{}.wgsl:{}", self.file, self.line)
    }
}

impl ShaderText {
    /// A compiler's `message` on one line, with places in the source instead of places in this text: `wgsl:57:9` becomes
    /// `shaders/linear/matmul_tile.wgsl:12:9`, and so does the number before a quoted line.
    pub fn trace_back(&self, message: &str) -> String {
        let words: Vec<&str> = message.split_whitespace().collect();
        let quotes = |index: usize| words.get(index + 1) == Some(&"│");
        let traced = words.iter().enumerate().map(|(index, &word)| {
            let place = match word.rsplitn(3, ':').collect::<Vec<_>>()[..] {
                [column, line, _] if column.parse::<u32>().is_ok() => self
                    .place(line)
                    .map(|place| format!("{place}:{column}").into()),
                [line] if quotes(index) => self.place(line).map(|it| it.line.to_string().into()),
                _ => None,
            };
            place.unwrap_or(Cow::Borrowed(word))
        });
        traced.collect::<Vec<_>>().join(" ")
    }

    fn place(&self, line: &str) -> Option<&Place> {
        let line: usize = line.parse().ok()?;
        self.places.get(line.checked_sub(1)?)
    }
}

/// The shader files of a device: a folder's, and for those that it lacks the ones that are part of this program.
#[derive(Debug)]
pub(crate) struct ShaderFiles {
    folder: Option<PathBuf>,
    /// Whether the text is a browser's to compile, which wants `enable subgroups;`. naga 30 refuses that directive and needs
    /// none.
    is_browser: bool,
    texts: Mutex<HashMap<&'static str, Result<Arc<ShaderText>, GpuError>>>,
}

impl ShaderFiles {
    /// `folder`: files to read instead of this program's own, see [`super::GpuOptions::shaders`].
    pub fn new(folder: Option<PathBuf>, is_browser: bool) -> Self {
        Self {
            folder,
            is_browser,
            texts: Mutex::default(),
        }
    }

    /// The folder that files are read from in the place of this program's own.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The text of `kernel`, put together once.
    ///
    /// # Errors
    /// A file is missing or names what is not there.
    pub fn text(&self, kernel: &Kernel) -> Result<Arc<ShaderText>, GpuError> {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let text = texts.entry(kernel.name);
        text.or_insert_with(|| Assembly::new(self, kernel).finish().map(Arc::new))
            .clone()
    }

    /// The text of file `name`, and whether it is this program's own.
    fn read(&self, name: &str) -> Result<(Cow<'static, str>, bool), String> {
        let own = OWN_FILES.get_file(format!("{name}.wgsl"));
        let own = own.and_then(|file| file.contents_utf8());
        let path = self
            .folder
            .as_ref()
            .map(|it| it.join(format!("{name}.wgsl")));
        match (path.filter(|path| path.exists() || own.is_none()), own) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(&path);
                let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
                let is_own = own == Some(text.as_str());
                Ok((text.into(), is_own))
            }
            (None, Some(text)) => Ok((text.into(), true)),
            (None, None) => Err("there is no such file".into()),
        }
    }
}

/// A text that is being put together.
struct Assembly<'a> {
    files: &'a ShaderFiles,
    kernel: &'a Kernel,
    /// Files that are in the text or on their way there.
    begun: HashSet<String>,
    directives: Vec<(String, Place)>,
    lines: Vec<(String, Place)>,
    is_own: bool,
}

impl<'a> Assembly<'a> {
    fn new(files: &'a ShaderFiles, kernel: &'a Kernel) -> Self {
        Self {
            files,
            kernel,
            begun: HashSet::new(),
            directives: Vec::new(),
            lines: Vec::new(),
            is_own: true,
        }
    }

    fn finish(mut self) -> Result<ShaderText, GpuError> {
        self.add(self.kernel.shader, &format!("kernel {}", self.kernel.name))?;
        let mut text = String::new();
        let mut places = Vec::new();
        for (line, place) in self.directives.into_iter().chain(self.lines) {
            text.push_str(&line);
            text.push('\n');
            places.push(place);
        }
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        Ok(ShaderText {
            is_own: self.is_own,
            hash: hasher.finish(),
            text,
            places,
        })
    }

    /// Adds the file `name`, which `importer` wants, unless it is there: those that it imports first.
    fn add(&mut self, name: &str, importer: &dyn Display) -> Result<(), GpuError> {
        if !self.begun.insert(name.to_owned()) {
            return Ok(());
        }
        let read = self.files.read(name);
        let (text, is_own) = read.map_err(|problem| error(importer, name, &problem))?;
        self.is_own &= is_own;
        let file: Arc<str> = name.into();
        let place_of = |line| Place {
            file: Arc::clone(&file),
            line,
        };
        let lines = text.lines().map(Cow::Borrowed).zip(1..).collect::<Vec<_>>();
        let lines = written_out(&lines).map_err(|(line, problem)| GpuError::Shader {
            place: place_of(line).to_string(),
            problem: problem.into(),
        })?;
        for (line, number) in lines {
            let place = place_of(number);
            if let Some(import) = line.strip_prefix("#import ") {
                let wanted = self.chosen(import.trim(), &place)?;
                self.add(&wanted, &place)?;
            } else if line.starts_with("enable ") {
                self.enable(&line, place);
            } else {
                self.lines.push((line.into_owned(), place));
            }
        }
        Ok(())
    }

    fn enable(&mut self, directive: &str, place: Place) {
        let is_for_others = directive == "enable subgroups;" && !self.files.is_browser;
        if !is_for_others && self.directives.iter().all(|(it, _)| it != directive) {
            self.directives.push((directive.to_owned(), place));
        }
    }

    /// The name in an import, with the kernel's choices in the place of what stands in braces.
    fn chosen(&self, name: &str, place: &Place) -> Result<String, GpuError> {
        let choices = self.kernel.choices.iter();
        let chosen = choices.fold(name.to_owned(), |name, (what, value)| {
            name.replace(&format!("{{{what}}}"), value)
        });
        if chosen.contains('{') {
            let problem = format!("kernel {} makes no such choice", self.kernel.name);
            return Err(error(place, name, &problem));
        }
        Ok(chosen)
    }
}

/// A line of a file and its number.
type Line<'a> = (Cow<'a, str>, usize);

/// `lines` with those between `#for` and `#end` once for each value. The error has the line that is at fault.
fn written_out<'a>(lines: &[Line<'a>]) -> Result<Vec<Line<'a>>, (usize, &'static str)> {
    let mut all = Vec::new();
    let mut rest = lines;
    while let Some(((line, number), after)) = rest.split_first() {
        rest = after;
        let Some(head) = line.trim_start().strip_prefix("#for ") else {
            all.push((line.clone(), *number));
            continue;
        };
        let (letter, values) = head_of(head).ok_or((*number, "is not like `#for i in 0..8`"))?;
        let end = end_of(rest).ok_or((*number, "has no #end"))?;
        for value in values {
            let copies = rest[..end].iter();
            let copies = copies.map(|(line, number)| {
                let copy = line.replace(&format!("${letter}"), &value.to_string());
                (Cow::Owned(copy), *number)
            });
            all.extend(written_out(&copies.collect::<Vec<_>>())?);
        }
        rest = &rest[end + 1..];
    }
    Ok(all)
}

/// The letter and the values of `i in 0..8`.
fn head_of(head: &str) -> Option<(&str, Range<u32>)> {
    let (letter, values) = head.split_once(" in ")?;
    let (first, end) = values.trim().split_once("..")?;
    Some((letter, first.parse().ok()?..end.parse().ok()?))
}

/// Where the `#end` stands that belongs to a `#for` before `lines`.
fn end_of(lines: &[Line]) -> Option<usize> {
    let mut open = 1;
    lines.iter().position(|(line, _)| {
        let line = line.trim_start();
        open += u32::from(line.starts_with("#for "));
        open -= u32::from(line == "#end");
        open == 0
    })
}

fn error(place: &dyn Display, import: &str, problem: &str) -> GpuError {
    GpuError::Shader {
        place: place.to_string(),
        problem: format!("import of {import}: {problem}"),
    }
}

#[cfg(test)]
impl Kernel {
    /// The text as it is compiled natively.
    pub(crate) fn text(&self) -> Arc<ShaderText> {
        ShaderFiles::new(None, false).text(self).expect("whole")
    }

    /// The text as it is compiled in a browser.
    pub(crate) fn text_of_browser(&self) -> Arc<ShaderText> {
        ShaderFiles::new(None, true).text(self).expect("whole")
    }
}

/// The folder `shaders/`, as part of this program.
static OWN_FILES: Dir = include_dir!("$CARGO_MANIFEST_DIR/shaders");

/// Name and text of every file in it.
#[cfg(test)]
pub(crate) fn own_files() -> impl Iterator<Item = (String, &'static str)> {
    let files = OWN_FILES.dirs().flat_map(|folder| folder.files());
    files.map(|file| {
        let name = file
            .path()
            .with_extension("")
            .to_string_lossy()
            .replace('\\', "/");
        (name, file.contents_utf8().expect("UTF-8"))
    })
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::gpu::{READ, WRITE, params};

    /// Names of all files below `folder`, without `.wgsl`.
    fn files_below(folder: &Path, prefix: &str) -> Vec<String> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("readable").path();
            let name = path.file_stem().expect("a name").to_str().expect("Unicode");
            let name = format!("{prefix}{name}");
            match path.is_dir() {
                true => names.extend(files_below(&path, &format!("{name}/"))),
                false => names.push(name),
            }
        }
        names
    }

    #[test]
    fn every_file_is_part_of_the_program() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
        let mut names = files_below(folder.as_ref(), "");
        let mut own: Vec<String> = own_files().map(|(name, _)| name).collect();
        names.sort();
        own.sort();
        assert_eq!(names, own);
    }

    params! {
        struct Nothing {}
    }

    static MAIN: Kernel =
        Kernel::new::<Nothing>("main", &[READ, WRITE]).named("main", &[("size", "8")]);

    /// The text of [`MAIN`] from files of these names and texts.
    fn text_of(files: &[(&str, &str)], is_browser: bool) -> Result<Arc<ShaderText>, GpuError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(format!("{name}.wgsl")), text).expect("writable");
        }
        ShaderFiles::new(Some(folder.path().into()), is_browser).text(&MAIN)
    }

    const FILES: [(&str, &str); 3] = [
        (
            "main",
            "// main\n#import of_8\n#import of_{size}\n#import both\nmain_line\n",
        ),
        (
            "of_8",
            "enable f16;\nenable subgroups;\n#import both\nline_of_8",
        ),
        ("both", "enable f16;\nline_of_both\n"),
    ];

    #[test]
    fn what_is_imported_stands_once_and_before_its_importer_behind_all_directives() {
        let text = text_of(&FILES, false).expect("whole");
        let lines = "enable f16;\n// main\nline_of_both\nline_of_8\nmain_line\n";
        assert_eq!(text.text, lines);
        assert!(!text.is_own);
        let in_browser = text_of(&FILES, true).expect("whole");
        assert_eq!(
            in_browser.text,
            lines.replacen(";", ";\nenable subgroups;", 1)
        );
        assert_ne!(text.hash, in_browser.hash);
    }

    #[test]
    fn what_a_compiler_says_is_traced_back_to_its_file_and_line() {
        let text = text_of(&FILES, false).expect("whole");
        let said = "error: expected ';'\n   ┌─ wgsl:4:7\n   │\n 4 │ line_of_8\n   │       ^ at 4\n";
        let traced = "error: expected ';' ┌─ shaders/of_8.wgsl:4:7 │ 4 │ line_of_8 │ ^ at 4";
        assert_eq!(text.trace_back(said), traced);
        assert_eq!(text.trace_back(":5:1 e"), "shaders/main.wgsl:5:1 e");
        assert_eq!(text.trace_back("5 │ main_line"), "5 │ main_line");
        assert_eq!(
            text.trace_back("wgsl:3:1 at 12:30:00"),
            "shaders/both.wgsl:2:1 at 12:30:00"
        );
    }

    #[test]
    fn copies_are_written_out_with_the_lines_they_come_from() {
        let main = "#for i in 0..2\n  a_$i\n  #for j in 3..5\n  b_$i_$ju\n  #end\n#end\nc";
        let text = text_of(&[("main", main)], false).expect("whole");
        let lines = "  a_0\n  b_0_3u\n  b_0_4u\n  a_1\n  b_1_3u\n  b_1_4u\nc\n";
        assert_eq!(text.text, lines);
        assert_eq!(text.trace_back("wgsl:6:3"), "shaders/main.wgsl:4:3");
        assert_eq!(text.trace_back("wgsl:7:1"), "shaders/main.wgsl:7:1");
        for (main, problem) in [
            (
                "a\n#for i in 0..2\n#for j in 0..2\n#end",
                "shaders/main.wgsl:2: has no #end",
            ),
            (
                "#for i from 0 to 2\n#end",
                "shaders/main.wgsl:1: is not like `#for i in 0..8`",
            ),
        ] {
            let error = text_of(&[("main", main)], false).expect_err("wrong");
            assert_eq!(error.to_string(), problem);
        }
    }

    #[test]
    fn what_is_not_there_is_told_with_the_line_that_wants_it() {
        let problem = |files: &[_]| text_of(files, false).expect_err("incomplete").to_string();
        let missing = problem(&FILES[..2]);
        assert!(
            missing.starts_with("shaders/of_8.wgsl:3: import of both: "),
            "{missing}"
        );
        let unchosen = problem(&[("main", "a\n#import of_{sizes}\n")]);
        assert!(
            unchosen.starts_with("shaders/main.wgsl:2: import of of_{sizes}: "),
            "{unchosen}"
        );
        let nothing = problem(&[]);
        assert!(
            nothing.starts_with("kernel main: import of main: "),
            "{nothing}"
        );
    }
}

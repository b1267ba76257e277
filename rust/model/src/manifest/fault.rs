//! What is wrong with a document, and where: faults with RFC 6901 pointers, collected while it is read.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::Limits;
use crate::failure::Code;

/// Faults reported at most; reading stops there.
pub const MAX_FAULTS: usize = 100;
/// A longer pointer is cut: it comes from hostile nesting and would help nobody.
const MAX_POINTER_BYTES: usize = 512;

/// One fault of a document.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// RFC 6901 pointer to the value; empty for the document itself.
    pub pointer: String,
    /// A code of the `VALIDATION_` family.
    pub code: Code,
    /// What is wrong and what would be right.
    pub message: String,
}

/// A step of the way down to the value being read.
#[derive(Debug)]
pub(super) enum Step {
    Name(Cow<'static, str>),
    Index(usize),
}

/// Collects faults at the place where reading is.
#[derive(Debug)]
pub(super) struct Faults<'l> {
    pub limits: &'l Limits,
    /// Whether null stands for an absent value, as it does in what handlers build.
    pub null_is_absent: bool,
    list: Vec<Fault>,
    path: Vec<Step>,
}

impl<'l> Faults<'l> {
    pub fn new(limits: &'l Limits, null_is_absent: bool) -> Self {
        Self { limits, null_is_absent, list: Vec::new(), path: Vec::new() }
    }

    /// Goes down to a member. After an error the way stays as it is, so that the error can be placed.
    pub fn enter(&mut self, name: &'static str) {
        self.path.push(Step::Name(Cow::Borrowed(name)));
    }

    /// Goes down to a member whose name the sender chose.
    pub fn enter_named(&mut self, name: &str) {
        self.path.push(Step::Name(Cow::Owned(name.to_owned())));
    }

    /// Goes down to an element.
    pub fn enter_index(&mut self, index: usize) {
        self.path.push(Step::Index(index));
    }

    /// Goes up again.
    pub fn leave(&mut self) {
        self.path.pop();
    }

    /// How deep reading is, for [`rise_to`](Self::rise_to).
    pub fn depth(&self) -> usize {
        self.path.len()
    }

    /// Goes up to an earlier depth, after an error below it was dealt with.
    pub fn rise_to(&mut self, depth: usize) {
        self.path.truncate(depth);
    }

    /// Reports a fault of the value being read.
    pub fn add(&mut self, code: Code, message: impl Into<String>) {
        if !self.is_full() {
            let pointer = self.pointer();
            self.list.push(Fault { pointer, code, message: message.into() });
        }
    }

    /// Reports a fault of a member of the object being read.
    pub fn add_below(&mut self, name: &str, code: Code, message: impl Into<String>) {
        self.enter_named(name);
        self.add(code, message);
        self.leave();
    }

    /// Whether no more faults are taken.
    pub fn is_full(&self) -> bool {
        self.list.len() >= MAX_FAULTS
    }

    /// The faults in the order they were found.
    pub fn into_list(self) -> Vec<Fault> {
        self.list
    }

    fn pointer(&self) -> String {
        let mut pointer = String::new();
        for step in &self.path {
            pointer.push('/');
            match step {
                Step::Name(name) => pointer.push_str(&name.replace('~', "~0").replace('/', "~1")),
                Step::Index(index) => {
                    // Writing to a String cannot fail.
                    let _ = write!(pointer, "{index}");
                }
            }
        }
        if pointer.len() > MAX_POINTER_BYTES {
            let cut = (0..=MAX_POINTER_BYTES).rev().find(|at| pointer.is_char_boundary(*at)).unwrap_or(0);
            let cut = pointer[..cut].rfind('/').unwrap_or(cut);
            pointer.truncate(cut);
        }
        pointer
    }
}

/// The byte offset of a serde_json error in the text it was found in.
fn offset_in(text: &str, error: &serde_json::Error) -> usize {
    let line_start = match error.line().checked_sub(2) {
        None => 0,
        Some(newlines) => text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').nth(newlines).map_or(0, |(at, _)| at + 1),
    };
    (line_start + error.column()).min(text.len())
}

/// Reports what stopped serde_json. `text` begins at byte `base` of the body.
pub(super) fn add_json_error(faults: &mut Faults<'_>, text: &str, base: usize, error: &serde_json::Error) {
    if faults.is_full() {
        return;
    }
    let whole = error.to_string();
    let what = whole.split(" at line ").next().unwrap_or(&whole);
    let code = if what.starts_with("recursion limit") { Code::ValidationTooDeep } else { Code::ValidationBadJson };
    faults.add(code, format!("not valid JSON at byte {}: {what}", base + offset_in(text, error)));
}

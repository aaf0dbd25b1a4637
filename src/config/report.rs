//! What is wrong with a configuration, and its drawing.
//!
//! A [`Problem`] points at a place in the text and says what was found, what was expected and
//! the mend; a [`Report`] holds all of them in the order of the file and draws them as compilers
//! do.  Nothing here decides what is wrong: that is `table`, `read` and `check`.

use std::cell::RefCell;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

/// One thing that is wrong, or worth a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whether the configuration can be used all the same.
    pub severity: Severity,
    /// What is wrong, naming the key.
    pub title: String,
    /// The octets of the text it is about; `None` where something is missing altogether.
    pub span: Option<Range<usize>>,
    /// What stands under those octets: what was expected there.
    pub label: String,
    /// How to mend it, and why it is so.
    pub help: Option<String>,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It works, but perhaps not as meant.
    Warning,
}

impl Problem {
    /// An error about the octets of `span`.
    pub(super) fn error(title: impl Into<String>, span: Range<usize>) -> Problem {
        Problem {
            severity: Severity::Error,
            title: title.into(),
            span: Some(span),
            label: String::new(),
            help: None,
        }
    }

    /// A warning about the octets of `span`.
    pub(super) fn warning(title: impl Into<String>, span: Range<usize>) -> Problem {
        Problem { severity: Severity::Warning, ..Problem::error(title, span) }
    }

    /// An error about what is nowhere in the text.
    pub(super) fn missing(title: impl Into<String>) -> Problem {
        Problem { span: None, ..Problem::error(title, 0..0) }
    }

    pub(super) fn label(mut self, label: impl Into<String>) -> Problem {
        self.label = label.into();
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = Some(help.into());
        self
    }
}

/// The problems found so far.  Shared by the readers of all tables, which nest.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub(super) fn push(&self, problem: Problem) {
        self.0.borrow_mut().push(problem);
    }

    /// Everything found, in the order of the text; what has no place comes last.
    pub(super) fn into_report(self, origin: &str, text: &str) -> Report {
        let mut problems = self.0.into_inner();
        problems.sort_by_key(|problem| problem.span.as_ref().map_or(usize::MAX, |s| s.start));
        Report { origin: origin.to_owned(), text: text.to_owned(), problems }
    }
}

/// All that was found in one configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    origin: String,
    text: String,
    problems: Vec<Problem>,
}

impl Report {
    /// Of what needs no file.
    pub(super) fn empty() -> Report {
        Report { origin: String::new(), text: String::new(), problems: Vec::new() }
    }

    /// The problems in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many of them are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    /// Whether the configuration must be refused.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// Draws the problems, each with its lines of the file, and a blank line after each.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let drawn = self.problems.iter().map(|p| renderer.render(&[self.group(p)]) + "\n\n");
        drawn.collect()
    }

    fn group<'a>(&'a self, problem: &'a Problem) -> Group<'a> {
        let level = match problem.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(problem.title.as_str());
        let group = match &problem.span {
            None => title.element(Origin::path(self.origin.as_str())),
            Some(span) => {
                let mark = AnnotationKind::Primary.span(span.clone());
                let mark = match problem.label.as_str() {
                    "" => mark,
                    label => mark.label(label),
                };
                let snippet = Snippet::source(self.text.as_str());
                title.element(snippet.path(self.origin.as_str()).annotation(mark))
            }
        };
        match &problem.help {
            Some(help) => group.element(Level::HELP.message(help.as_str())),
            None => group,
        }
    }
}

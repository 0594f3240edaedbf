//! Everything that is wrong with a configuration at once, drawn the way rustc draws it.
//!
//! A fault knows the part of the file it is about; positions are looked up when all are known.
//! What is drawn is the file's own text, with whatever looks like a secret covered.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::raw::{Step, Value};
use super::span;

/// Beyond so many faults they are only counted: each costs a parse, and nobody reads on.
const MOST_DRAWN: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// It is taken; somebody should look at it.
    Warning,
}

/// What a fault is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A part of the file.
    Part(Vec<Step>),
    /// A byte offset in the file, for text that is not YAML.
    Offset(usize),
    /// A flag or an environment variable, and its text.
    Given { name: String, text: String },
    /// Nothing anybody wrote.
    Nowhere,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub severity: Severity,
    /// The way to the setting: `groups.run.rate.requests`, or the name of a flag.
    pub path: String,
    /// What is wrong, in one sentence without its full stop.
    pub what: String,
    /// What to write instead, if there is an idea.
    pub help: Option<String>,
    /// Line and column, both from 1, where the file is to blame.
    pub position: Option<(usize, usize)>,
    label: String,
    place: Place,
    also: Option<(Place, String)>,
}

impl Fault {
    /// `path` is the setting's; a flag or variable goes by its own name.
    pub(super) fn new(place: Place, path: impl Into<String>, what: impl Into<String>) -> Self {
        let path = match &place {
            Place::Given { name, .. } => name.clone(),
            _ => path.into(),
        };
        Self {
            severity: Severity::Error,
            path,
            what: what.into(),
            help: None,
            position: None,
            label: String::new(),
            place,
            also: None,
        }
    }

    /// Words beside the underlined text.
    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(super) fn maybe_help(self, help: Option<String>) -> Self {
        match help {
            Some(help) => self.help(help),
            None => self,
        }
    }

    /// A second part of the file that has to do with it.
    pub(super) fn also(mut self, place: Place, label: impl Into<String>) -> Self {
        self.also = Some((place, label.into()));
        self
    }

    pub(super) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }
}

/// Faults in the order of the file.
#[derive(Clone, Debug)]
pub struct Faults {
    file: String,
    /// The file's text with its secrets covered; same bytes otherwise.
    text: String,
    drawn: Vec<Drawn>,
    /// How many more errors there are than are drawn.
    more: usize,
}

#[derive(Clone, Debug)]
struct Drawn {
    fault: Fault,
    span: Option<Range<usize>>,
    also: Option<Range<usize>>,
}

impl Faults {
    /// Looks every position up. `tree` is the parsed `text`, if it could be parsed.
    pub(super) fn new(
        file: &str,
        text: &str,
        tree: Option<&Value>,
        mut faults: Vec<Fault>,
    ) -> Self {
        // Errors first, so that a crowd of warnings never hides one.
        faults.sort_by_key(|fault| fault.severity == Severity::Warning);
        let rest = faults.split_off(MOST_DRAWN.min(faults.len()));
        let more = rest
            .iter()
            .filter(|f| f.severity == Severity::Error)
            .count();
        let mut drawn: Vec<Drawn> = faults.into_iter().map(|f| Drawn::new(text, f)).collect();
        drawn.sort_by_key(|d| d.span.as_ref().map_or(usize::MAX, |s| s.start));
        Self {
            file: file.to_owned(),
            text: span::covered(text, tree),
            drawn,
            more,
        }
    }

    /// Whether anything in it refuses the configuration.
    pub fn refuse(&self) -> bool {
        self.errors() > 0
    }

    pub fn is_empty(&self) -> bool {
        self.drawn.is_empty()
    }

    /// How many of them refuse it, those past the drawn ones too.
    pub fn errors(&self) -> usize {
        let error = |d: &&Drawn| d.fault.severity == Severity::Error;
        self.drawn.iter().filter(error).count() + self.more
    }

    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.drawn.iter().map(|drawn| &drawn.fault)
    }

    /// As text for a terminal, with colours or without, ending in a line break.
    pub fn render(&self, colours: bool) -> String {
        let renderer = match colours {
            true => Renderer::styled(),
            false => Renderer::plain(),
        };
        let mut page = String::new();
        for drawn in &self.drawn {
            page += &self.draw(drawn, &renderer);
            page += "\n\n";
        }
        if self.more > 0 {
            page += &format!("and {} more\n\n", self.more);
        }
        page.truncate(page.trim_end().len());
        page + "\n"
    }

    fn draw(&self, drawn: &Drawn, renderer: &Renderer) -> String {
        let fault = &drawn.fault;
        let level = match fault.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = match fault.path.as_str() {
            "" => fault.what.clone(),
            path => format!("{path}: {}", fault.what),
        };
        let mut group = Group::with_title(level.primary_title(title));
        if let Place::Given { name, text } = &fault.place {
            let all = span::on_one_line(text);
            group = group.element(
                Snippet::source(all.clone()).path(name).annotation(
                    AnnotationKind::Primary
                        .span(0..all.len())
                        .label(&fault.label),
                ),
            );
        } else if let Some(span) = &drawn.span {
            let (shown, line) = span::lines(&self.text, span, drawn.also.as_ref());
            let inside = |s: &Range<usize>| s.start - shown.start..s.end - shown.start;
            let mut snippet = Snippet::source(&self.text[shown.clone()])
                .path(&self.file)
                .line_start(line)
                .annotation(
                    AnnotationKind::Primary
                        .span(inside(span))
                        .label(&fault.label),
                );
            if let (Some(also), Some((_, label))) = (&drawn.also, &fault.also) {
                snippet =
                    snippet.annotation(AnnotationKind::Context.span(inside(also)).label(label));
            }
            group = group.element(snippet);
        }
        if let Some(help) = &fault.help {
            group = group.element(Level::HELP.message(help));
        }
        renderer.render(&[group])
    }
}

impl Drawn {
    fn new(text: &str, mut fault: Fault) -> Self {
        let span = span::of(text, &fault.place);
        let also = fault
            .also
            .as_ref()
            .and_then(|(place, _)| span::of(text, place));
        fault.position = span.as_ref().map(|span| span::position(text, span.start));
        Self { fault, span, also }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Faults {}

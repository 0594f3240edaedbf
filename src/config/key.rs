//! What a key of the configuration and its value can be; `keys` says which there are.

use std::ops::RangeInclusive;
use std::time::Duration;

/// What a value must be.
#[derive(Debug)]
pub(super) enum Kind {
    /// An IP address and a port.
    Address,
    /// An IP address and a port, or `unix:` and a path.
    ListenAddress,
    /// The same, or a map that says more of it.
    Listener(&'static Level),
    /// A file's permissions, in octal.
    Mode,
    /// An `http` or `https` URL.
    Url,
    /// A file or folder; a relative one counts from the configuration's folder.
    Path,
    /// The name of an environment variable.
    Variable,
    /// A host's name, without a port.
    Host,
    /// What a certificate can be for.
    ServerName,
    Flag,
    Whole(RangeInclusive<u64>),
    /// A whole number, or a word that stands for something else.
    WholeOr(&'static str, RangeInclusive<u64>),
    Duration(RangeInclusive<Duration>),
    /// Bytes.
    Size(RangeInclusive<u64>),
    /// One of a closed set.
    Word(&'static [&'static str]),
    List(&'static Kind),
    /// The one, or a list of them that is not empty.
    OneOrMany(&'static Kind),
    Map(&'static Level),
    /// A map, or a word that stands for something else.
    MapOr(&'static str, &'static Level),
    /// A map with exactly one of the keys.
    OneOf(&'static Level),
    /// A map whose keys are ids or shapes of ids.
    Ids(&'static Kind),
    /// The preset's own word on where its numbers are from.
    Sources(&'static [&'static str]),
}

/// The keys of one kind of map.
#[derive(Debug)]
pub(super) struct Level {
    /// How its place is named in a hint; empty for the root.
    pub name: &'static str,
    pub keys: &'static [Key],
}

#[derive(Debug)]
pub(super) struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// One sentence without its full stop, for the schema and the README.
    pub about: &'static str,
    pub scope: Scope,
}

/// Where a key of a group means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Everywhere,
    /// In the group `status` alone.
    Status,
    /// In the preset alone.
    Preset,
}

impl Kind {
    pub fn level(&self) -> Option<&'static Level> {
        match self {
            Kind::Map(level)
            | Kind::MapOr(_, level)
            | Kind::OneOf(level)
            | Kind::Listener(level) => Some(level),
            _ => None,
        }
    }

    pub fn of_ids(&self) -> Option<&'static Kind> {
        match self {
            Kind::Ids(kind) => Some(kind),
            _ => None,
        }
    }

    pub fn of_items(&self) -> Option<&'static Kind> {
        match self {
            Kind::List(kind) | Kind::OneOrMany(kind) => Some(kind),
            _ => None,
        }
    }

    pub fn whole(&self) -> Option<&RangeInclusive<u64>> {
        match self {
            Kind::Whole(bounds) | Kind::WholeOr(_, bounds) => Some(bounds),
            _ => None,
        }
    }

    pub fn duration(&self) -> Option<&RangeInclusive<Duration>> {
        match self {
            Kind::Duration(bounds) => Some(bounds),
            _ => None,
        }
    }

    pub fn size(&self) -> Option<&RangeInclusive<u64>> {
        match self {
            Kind::Size(bounds) => Some(bounds),
            _ => None,
        }
    }

    pub fn words(&self) -> Option<&'static [&'static str]> {
        match self {
            Kind::Word(words) | Kind::Sources(words) => Some(words),
            _ => None,
        }
    }

    /// The word that stands for something else than a map or number; empty where there is none.
    pub fn word(&self) -> &'static str {
        match self {
            Kind::WholeOr(word, _) | Kind::MapOr(word, _) => word,
            _ => "",
        }
    }
}

impl Key {
    pub const fn new(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self {
            name,
            kind,
            about,
            scope: Scope::Everywhere,
        }
    }

    pub const fn only(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }
}

impl Level {
    pub fn key(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The names a user's file may hold here.
    pub fn names(&self) -> Vec<&'static str> {
        let keys = self.keys.iter().filter(|key| key.scope != Scope::Preset);
        keys.map(|key| key.name).collect()
    }
}

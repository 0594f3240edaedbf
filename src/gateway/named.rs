//! By what a request is found again, in logs and upstream: as its client has named it, or as it is
//! named here.

use http::header::HeaderValue;

use crate::text::Short;

/// Longer than what is made here: a `traceparent`.
const LONGEST: usize = 55;

/// What is made here is in the place where it is kept: most requests come without a name.
#[derive(Clone, Debug)]
pub enum Named {
    Given(HeaderValue),
    /// Visible ASCII.
    Made(Short<LONGEST>),
}

impl Named {
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Named::Given(given) => given.as_bytes(),
            Named::Made(made) => made.as_bytes(),
        }
    }

    /// As text, if it is text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// As the value of a field.
    pub fn field(&self) -> HeaderValue {
        match self {
            Named::Given(given) => given.clone(),
            Named::Made(made) => {
                let made = HeaderValue::from_bytes(made.as_bytes());
                made.unwrap_or(HeaderValue::from_static(""))
            }
        }
    }
}

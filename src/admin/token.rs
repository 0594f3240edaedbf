//! What operators show, where the configuration asks for it.

use base64::prelude::{BASE64_STANDARD, Engine};
use http::header::AUTHORIZATION;
use http::request;
use subtle::ConstantTimeEq;

use crate::config::secret::{SecretError, SecretSource};

/// Whether `request` shows the token. It is read each time: whoever turns it in its file need not say
/// so here.
///
/// # Errors
/// [`SecretError`]: nobody can tell.
pub(super) fn is_shown(
    request: &request::Parts,
    token: &SecretSource,
) -> Result<bool, SecretError> {
    let token = token.resolve()?;
    let field = request.headers.get(AUTHORIZATION);
    let shown = field.and_then(|field| shown(field.as_bytes()));
    Ok(shown.is_some_and(|shown| shown.ct_eq(token.expose().as_bytes()).into()))
}

/// A browser knows no other way to ask for it than as a password; for whom does not matter.
fn shown(field: &[u8]) -> Option<Vec<u8>> {
    let space = field.iter().position(|byte| *byte == b' ')?;
    let (scheme, shown) = (&field[..space], &field[space + 1..]);
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(shown.to_vec());
    }
    let pair = scheme.eq_ignore_ascii_case(b"basic").then_some(shown)?;
    let pair = BASE64_STANDARD.decode(pair).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn it_is_all_of_it_or_nothing() {
        let folder = std::env::temp_dir().join(format!("podgate-token-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        let file = folder.join("token");
        std::fs::write(&file, "s3cret\n").expect("written");
        let source = SecretSource::File(file);
        for (field, right) in [
            ("Bearer s3cret", true),
            ("bearer s3cret", true),
            ("Bearer s3cre", false),
            ("Bearer s3cret1", false),
            ("Bearer ", false),
            ("Bearer", false),
            ("Basic s3cret", false),
            ("Basic Om1lOnMzY3JldA==", false),
            ("Basic bWU6czNjcmV0", true),
            ("basic OnMzY3JldA==", true),
            ("s3cret", false),
            ("", false),
        ] {
            let request = Request::get("/lanes").header(AUTHORIZATION, field);
            let (head, ()) = request.body(()).expect("a request").into_parts();
            assert_eq!(is_shown(&head, &source).expect("a token"), right, "{field}");
        }
        std::fs::remove_dir_all(&folder).expect("removed");
        let (head, ()) = Request::new(()).into_parts();
        assert!(is_shown(&head, &source).is_err());
    }
}

//! A secret, and where it is kept. Neither can be printed by accident.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// The longest key file that is read, in bytes.
const LONGEST: u64 = 16 * 1024;

/// A secret's text. `Debug` and `Display` show `***`; there is no way to serialise it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one header it goes into.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a secret is kept. It is read when it is needed, not when the configuration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    File(PathBuf),
    /// An environment variable's name.
    Env(String),
}

/// Why a secret cannot be had. Names the place, never the content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the file `{}` cannot be read: {why}", path.display())]
    Unreadable { path: PathBuf, why: std::io::Error },
    #[error("the environment variable `{name}` is not set")]
    Unset { name: String },
    #[error("{place} is empty")]
    Empty { place: String },
    #[error("{place} is longer than {LONGEST} bytes")]
    TooLong { place: String },
    #[error("{place} holds a space, a line break or another character no key has")]
    NotAKey { place: String },
}

impl SecretSource {
    /// Reads the secret; white space around it (the line break most files end with) is not part
    /// of it.
    pub fn resolve(&self) -> Result<Secret, SecretError> {
        let (place, text) = match self {
            SecretSource::File(path) => {
                let why = |why| SecretError::Unreadable {
                    path: path.clone(),
                    why,
                };
                let mut bytes = Vec::new();
                let file = File::open(path).map_err(why)?;
                file.take(LONGEST + 1)
                    .read_to_end(&mut bytes)
                    .map_err(why)?;
                // Bytes that are no text become a character no key has.
                let text = String::from_utf8_lossy(&bytes).into_owned();
                (format!("the file `{}`", path.display()), text)
            }
            SecretSource::Env(name) => {
                let text = std::env::var_os(name)
                    .ok_or_else(|| SecretError::Unset { name: name.clone() })?;
                let place = format!("the environment variable `{name}`");
                (place, text.to_string_lossy().into_owned())
            }
        };
        let key = text.trim();
        match () {
            () if key.is_empty() => Err(SecretError::Empty { place }),
            () if text.len() as u64 > LONGEST => Err(SecretError::TooLong { place }),
            () if !key.bytes().all(|b| b.is_ascii_graphic()) => Err(SecretError::NotAKey { place }),
            () => Ok(Secret(key.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret("rpa_0123456789".into());
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)),
            "*** *** Some(***)"
        );
        assert_eq!(secret.expose(), "rpa_0123456789");
    }

    #[test]
    fn a_file_is_read_without_its_line_break_and_faults_name_only_the_place() {
        let dir = std::env::temp_dir().join(format!("podgate-secret-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory for the test");
        let path = dir.join("key");
        let source = SecretSource::File(path.clone());

        std::fs::write(&path, "rpa_abc\n").expect("written");
        assert_eq!(source.resolve().expect("a key").expose(), "rpa_abc");

        for (content, said) in [
            ("\n", "is empty"),
            ("rpa_abc def\n", "no key has"),
            ("rpa_abc\0", "no key has"),
        ] {
            std::fs::write(&path, content).expect("written");
            let error = source.resolve().expect_err("refused").to_string();
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("rpa_"), "{error}");
        }

        std::fs::remove_dir_all(&dir).expect("removed");
        let error = source.resolve().expect_err("gone").to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
    }

    #[test]
    fn an_unset_variable_is_named() {
        let source = SecretSource::Env("PODGATE_TEST_NEVER_SET".into());
        let error = source.resolve().expect_err("unset").to_string();
        assert_eq!(
            error,
            "the environment variable `PODGATE_TEST_NEVER_SET` is not set"
        );
    }
}

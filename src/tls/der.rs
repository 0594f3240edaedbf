//! What little of a certificate is read here: until when it holds, and who it names.
//!
//! No crate: it is the way past seven fields of a structure that rustls has read whole before
//! (RFC 5280, section 4.1). Whatever is not as it should be is `None`; nothing is trusted by this.

/// Of one certificate, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// In seconds since 1970.
    pub expires: i64,
    /// The distinguished name.
    pub subject: &'a [u8],
    /// The alternative names, if there are any.
    pub names: &'a [u8],
}

const SEQUENCE: u8 = 0x30;
const OBJECT_ID: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// 2.5.29.17, `subjectAltName`.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];

/// Reads a certificate in DER.
pub fn read(certificate: &[u8]) -> Option<Facts<'_>> {
    let mut whole = Reader(Reader(certificate).take(SEQUENCE)?);
    let mut fields = Reader(whole.take(SEQUENCE)?);
    if fields.next_is(VERSION) {
        fields.element()?;
    }
    for _serial_algorithm_issuer in 0..3 {
        fields.element()?;
    }
    let mut validity = Reader(fields.take(SEQUENCE)?);
    validity.element()?;
    let (tag, until) = validity.element()?;
    let expires = time(tag, until)?;
    let subject = fields.take(SEQUENCE)?;
    let mut names: &[u8] = &[];
    while let Some((tag, content)) = fields.element() {
        if tag == EXTENSIONS {
            names = alternative_names(content).unwrap_or_default();
        }
    }
    Some(Facts {
        expires,
        subject,
        names,
    })
}

fn alternative_names(extensions: &[u8]) -> Option<&[u8]> {
    let mut all = Reader(Reader(extensions).take(SEQUENCE)?);
    loop {
        let mut one = Reader(all.take(SEQUENCE)?);
        let id = one.take(OBJECT_ID)?;
        if one.next_is(BOOLEAN) {
            one.element()?;
        }
        if id == ALTERNATIVE_NAMES {
            return Some(one.element()?.1);
        }
    }
}

/// `YYMMDDhhmmssZ`, of 1950 to 2049, or `YYYYMMDDhhmmssZ`.
fn time(tag: u8, text: &[u8]) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    let mut two = digits.chunks(2).map(|pair| match pair {
        [a @ b'0'..=b'9', b @ b'0'..=b'9'] => Some(i64::from((a - b'0') * 10 + (b - b'0'))),
        _ => None,
    });
    let mut next = || two.next().flatten();
    let year = match tag {
        UTC_TIME => match next()? {
            year @ 50.. => 1900 + year,
            year => 2000 + year,
        },
        GENERALIZED_TIME => next()? * 100 + next()?,
        _ => return None,
    };
    let (month, day) = (next()?, next()?);
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    let sound = (1..=12).contains(&month) && (1..=31).contains(&day);
    let sound = sound && hours < 24 && minutes < 60 && seconds < 61;
    let of_day = (hours * 60 + minutes) * 60 + seconds;
    sound.then(|| days(year, month, day) * 86_400 + of_day)
}

/// Days since 1970 in the Gregorian calendar, by counting a year from March, so that the day a leap
/// year has more is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    // From the first of March of the year 0 to 1970.
    year * 365 + leaps + of_year - 719_468
}

/// DER elements behind each other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next_is(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The content of the next element, which must be of this kind.
    fn take(&mut self, expected: u8) -> Option<&'a [u8]> {
        let (tag, content) = self.element()?;
        (tag == expected).then_some(content)
    }

    /// The next element's tag and content.
    fn element(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // Longer lengths than four bytes are of no certificate.
            0x81..=0x84 => {
                let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = length.iter().fold(0_usize, |sum, byte| {
                    sum.checked_shl(8).unwrap_or_default() | usize::from(*byte)
                });
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(subject: &str, names: &[&str], ends: (i32, u8, u8)) -> Vec<u8> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject);
        params.not_before = date_time_ymd(1999, 1, 1);
        params.not_after = date_time_ymd(ends.0, ends.1, ends.2);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn ends_are_read_of_either_form_and_of_leap_years() {
        for (ends, seconds) in [
            ((2000, 2, 29), 951_782_400),
            ((2000, 3, 1), 951_868_800),
            ((2026, 12, 31), 1_798_675_200),
            ((2049, 12, 31), 2_524_521_600),
            ((2050, 1, 1), 2_524_608_000),
            ((2400, 2, 29), 13_574_563_200),
        ] {
            let certificate = certificate("a", &[], ends);
            assert_eq!(read(&certificate).unwrap().expires, seconds, "{ends:?}");
        }
    }

    #[test]
    fn whom_it_names_does_not_change_with_its_renewal() {
        let of = |subject, names: &[&str], year| {
            let certificate = certificate(subject, names, (year, 1, 1));
            let facts = read(&certificate).unwrap();
            (facts.subject.to_vec(), facts.names.to_vec())
        };
        let first = of("batch", &["batch.test"], 2030);
        assert!(first.0.ends_with(b"batch"));
        assert!(first.1.ends_with(b"batch.test"));
        assert_eq!(first, of("batch", &["batch.test"], 2031));
        assert_ne!(first, of("batch", &["web.test"], 2030));
        assert_ne!(first, of("web", &["batch.test"], 2030));
        assert_eq!(of("web", &[], 2030).1, b"");
    }

    proptest! {
        #[test]
        fn no_bytes_panic_it(bytes: Vec<u8>, at in 0..600_usize, byte: u8) {
            read(&bytes);
            let mut certificate = certificate("a", &["b"], (2050, 1, 1));
            let at = at % certificate.len();
            certificate[at] = byte;
            read(&certificate);
        }
    }
}

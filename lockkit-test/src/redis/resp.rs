//! The protocol's framing, versions 2 and 3: where a message ends, and what a command is called.

/// The length of the message at the beginning, once it is there as a whole.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")? + 2;
    let number = || {
        let digits = std::str::from_utf8(&bytes[1..end - 2]).ok()?;
        // Below 0 is none at all.
        Some(digits.parse::<i64>().ok()?.max(-1))
    };
    match bytes[0] {
        b'$' | b'!' | b'=' => {
            let Ok(body) = usize::try_from(number()?) else {
                return Some(end);
            };
            let whole = end + body + 2;
            (bytes.len() >= whole).then_some(whole)
        }
        kind @ (b'*' | b'~' | b'>' | b'%' | b'|') => {
            let Ok(parts) = usize::try_from(number()?) else {
                return Some(end);
            };
            // A map has a key and a value an entry; what an attribute is about comes behind it.
            let parts = match kind {
                b'%' => parts * 2,
                b'|' => parts * 2 + 1,
                _ => parts,
            };
            let mut whole = end;
            for _ in 0..parts {
                whole += length(bytes.get(whole..)?)?;
            }
            Some(whole)
        }
        _ => Some(end),
    }
}

/// Whether a message of the server's answers no command.
pub(super) fn is_push(message: &[u8]) -> bool {
    message.first() == Some(&b'>')
}

/// A command's name, in capitals.
pub(super) fn name(command: &[u8]) -> String {
    // "*3\r\n$3\r\nSET\r\n..."
    let mut lines = command.split(|byte| *byte == b'\n');
    let name = lines.nth(2).unwrap_or_default();
    String::from_utf8_lossy(name.trim_ascii()).to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            "[+:#_,][a-z0-9]{0,5}\r\n".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..9).prop_map(|body| {
                let head = format!("${}\r\n", body.len()).into_bytes();
                [head, body, b"\r\n".to_vec()].concat()
            }),
            Just(b"$-1\r\n".to_vec()),
            Just(b"*-1\r\n".to_vec()),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            (0..4_usize, proptest::collection::vec(inner, 0..9)).prop_map(|(kind, mut parts)| {
                let sign = ['*', '~', '%', '|'][kind];
                let count = match sign {
                    '%' => {
                        parts.truncate(parts.len() / 2 * 2);
                        parts.len() / 2
                    }
                    '|' => {
                        parts.truncate((parts.len().max(1) - 1) / 2 * 2 + 1);
                        if parts.is_empty() {
                            parts.push(b"+\r\n".to_vec());
                        }
                        parts.len() / 2
                    }
                    _ => parts.len(),
                };
                let head = format!("{sign}{count}\r\n").into_bytes();
                [head, parts.concat()].concat()
            })
        })
    }

    proptest! {
        #[test]
        fn a_message_is_as_long_as_it_was_made(message in message(), rest: Vec<u8>) {
            let both = [message.clone(), rest].concat();
            prop_assert_eq!(length(&both), Some(message.len()));
        }

        #[test]
        fn a_part_of_a_message_is_none(message in message(), part: prop::sample::Index) {
            let part = &message[..part.index(message.len())];
            prop_assert_eq!(length(part), None);
        }
    }

    #[test]
    fn a_command_has_a_name() {
        assert_eq!(name(b"*2\r\n$3\r\nget\r\n$1\r\nk\r\n"), "GET");
        assert_eq!(name(b"junk"), "");
    }
}

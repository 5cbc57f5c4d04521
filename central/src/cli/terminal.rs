//! What a terminal is shown: titles, names, paths and errors carry what any observed program may choose, so they are
//! shown as text, and are neither layout nor orders to the terminal.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Whether a character moves the cursor, gives the terminal an order (C0, DEL, C1), breaks the line, or turns the
/// direction of what is read.
fn steers(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// A value as it can stand in a line: what would steer the terminal is written as an escape.
pub(super) fn escaped(text: &str) -> String {
    write(text, |_| false, |character, shown| shown.extend(character.escape_default()))
}

/// Lines as a terminal may get them; nothing but their ends steers it.
#[must_use]
pub fn printable(text: &str) -> String {
    write(text, |kept| kept == '\n', |character, shown| shown.extend(character.escape_default()))
}

/// JSON as a terminal may get it: outside of strings nothing steers, in them it has an escape of JSON's own.
pub(super) fn json(text: &str) -> String {
    // All that steers is in the plane that four digits can name.
    write(
        text,
        |kept| kept == '\n',
        |character, shown| shown.push_str(&format!("\\u{:04x}", u32::from(character))),
    )
}

fn write(text: &str, is_kept: fn(char) -> bool, escape: fn(char, &mut String)) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if steers(character) && !is_kept(character) {
            escape(character, &mut shown);
        } else {
            shown.push(character);
        }
    }
    shown
}

/// An answer with every text in it escaped, for rendering.
pub(super) fn plain<T: Clone + Serialize + DeserializeOwned>(answer: &T) -> T {
    let escaped = serde_json::to_value(answer).and_then(|mut value| {
        escape(&mut value);
        serde_json::from_value(value)
    });
    // What cannot be read again is rendered as it is: what is printed is looked through once more.
    escaped.unwrap_or_else(|_error| answer.clone())
}

fn escape(value: &mut Value) {
    match value {
        Value::String(text) => *text = escaped(text),
        Value::Array(items) => items.iter_mut().for_each(escape),
        Value::Object(fields) => {
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(name, mut value)| {
                    escape(&mut value);
                    (escaped(&name), value)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: texts in which a program put a line of its own, sequences that clear a screen and set its title, and
    /// characters that turn the reading direction around; the same as JSON, and within an answer.
    /// Guarantees: they are shown as escapes, the rest unchanged; JSON stays what it was.
    #[test]
    fn a_terminal_is_not_steered() {
        let text = "a\u{1b}[2J\u{9b}1m\r\n→ ä\u{7f}\u{202e}x\u{2066}";
        assert_eq!(escaped(text), r"a\u{1b}[2J\u{9b}1m\r\n→ ä\u{7f}\u{202e}x\u{2066}");
        assert_eq!(printable("a\u{1b}b\nc\u{85}"), "a\\u{1b}b\nc\\u{85}");
        let told = serde_json::to_string(text).unwrap();
        let shown = json(&told);
        assert!(!shown.chars().any(steers), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        let answer = vec![[("na\nme".to_owned(), text.to_owned())]];
        assert_eq!(plain(&answer), [[(escaped("na\nme"), escaped(text))]]);
    }
}
